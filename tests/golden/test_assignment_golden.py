"""`plaudit/stats/assignment_vectors.json` is the shared test-vector file: an SDK in any language that reproduces it assigns as the gateway does.

Made by an implementation in Perl that shares nothing with ours: `Digest::SHA::sha256_hex(encode_utf8("$salt\\x1f$unit"))`, its first 16 hex
digits read digit by digit as `r = (16 r + digit) mod 10000`, so that no 64-bit integer is ever formed; candidate where the bucket is below
10000 f, control where it is at least 10000 - 10000 f. The row (exp_1, user-1) was also checked with coreutils' sha256sum. Units of the
salt "edge" lie on the borders of the arms (0, 1, 99, 100, ... 9999); others are empty, accented in both normal forms, or outside the BMP. `sides`
(holdouts) were made in the same way; `segments` were written by hand.
"""

import hashlib
import json
from importlib import resources

import pytest

from plaudit.stats import assignment

SHARED = json.loads(resources.files("plaudit.stats").joinpath("assignment_vectors.json").read_text(encoding="utf-8"))
VECTORS = SHARED["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['salt']}:{v['unit'][:12]}")
def test_buckets_and_arms_match_the_independent_implementation(vector):
    bucket = assignment.bucket(vector["salt"], vector["unit"])
    assert bucket == vector["bucket"]
    arms = {share: assignment.arm_for(bucket, assignment.enrol(float(share))) for share in vector["arm"]}
    assert arms == vector["arm"]


def test_the_vectors_tell_wrong_implementations_apart():
    """Signed 64-bit remainders differ on hashes whose first bit is set; borders of arms are among the buckets."""
    high = [v for v in VECTORS if int(v["first_8_bytes"], 16) >= 2**63]
    assert high
    assert all((int(v["first_8_bytes"], 16) - 2**64) % 10_000 != v["bucket"] for v in high)
    assert {0, 99, 100, 4999, 5000, 9899, 9900, 9999} <= {v["bucket"] for v in VECTORS}


def reference(salt, unit):
    """Horner's rule over the hexadecimal digits: no integer above 160,000 is ever formed."""
    remainder = 0
    for digit in hashlib.sha256(salt.encode() + b"\x1f" + unit.encode()).hexdigest()[:16]:
        remainder = (16 * remainder + int(digit, 16)) % 10_000
    return remainder


def test_a_few_lines_reproduce_the_file():
    for vector in VECTORS:
        bucket = reference(vector["salt"], vector["unit"])
        for share, arm in vector["arm"].items():
            size = round(10_000 * float(share))
            assert arm == ("candidate" if bucket < size else "control" if bucket >= 10_000 - size else None)
    for vector in SHARED["sides"]:
        assert reference(vector["salt"] + "/holdout", vector["unit"]) == vector["bucket"]


@pytest.mark.parametrize("vector", SHARED["sides"], ids=lambda v: f"{v['salt']}:{v['unit'][:12]}")
def test_holdouts_match_the_independent_implementation(vector):
    sides = {share: assignment.side_of(vector["salt"], vector["unit"], float(share)) for share in vector["side"]}
    assert sides == vector["side"]


@pytest.mark.parametrize("case", SHARED["segments"], ids=lambda c: f"{c['segment']}:{c['attributes']}")
def test_segments(case):
    assert assignment.matches(assignment.segment(case["segment"]), case["attributes"]) == case["matches"]
