-- Which version of its instructions an interaction was answered under.

ALTER TABLE interactions ADD COLUMN system_sha256 TEXT;
