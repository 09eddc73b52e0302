-- Outcomes, erasure, quarantine and webhooks; which Snapshots and Checkpoints were built from what was erased.

CREATE TABLE outcomes (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  actor TEXT NOT NULL,
  name TEXT NOT NULL,
  value DOUBLE PRECISION NOT NULL,
  at BIGINT NOT NULL,
  "key" TEXT NOT NULL,
  body_sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX outcome_once ON outcomes (project_id, "key");

CREATE INDEX outcomes_by_name ON outcomes (project_id, name, actor, at);

CREATE TABLE erasures (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  reason TEXT NOT NULL,
  actor_sha256 TEXT,
  until BIGINT NOT NULL,
  "by" TEXT NOT NULL,
  counts TEXT NOT NULL,
  snapshot_ids TEXT NOT NULL,
  checkpoint_ids TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  purge_at BIGINT NOT NULL,
  compacted_at BIGINT,
  purged_at BIGINT,
  PRIMARY KEY (id)
);

CREATE INDEX erasures_to_purge ON erasures (project_id, purged_at, purge_at);

CREATE TABLE quarantines (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  actor TEXT,
  interaction_id TEXT,
  reason TEXT NOT NULL,
  "by" TEXT NOT NULL,
  n_feedback BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  lifted_at BIGINT,
  PRIMARY KEY (id)
);

CREATE TABLE webhooks (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  url TEXT NOT NULL,
  events TEXT NOT NULL,
  secret TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  ended_at BIGINT,
  PRIMARY KEY (id)
);

CREATE TABLE deliveries (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  webhook_id TEXT NOT NULL,
  event TEXT NOT NULL,
  object_id TEXT NOT NULL,
  source_id TEXT NOT NULL,
  n_attempts BIGINT NOT NULL,
  next_at BIGINT NOT NULL,
  error TEXT,
  delivered_at BIGINT,
  given_up_at BIGINT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX deliveries_waiting ON deliveries (webhook_id, delivered_at, given_up_at, id);

ALTER TABLE feedback ADD COLUMN quarantine_id TEXT;

ALTER TABLE interactions ADD COLUMN erasure_id TEXT;

ALTER TABLE snapshots ADD COLUMN tainted_at BIGINT;

ALTER TABLE snapshots ADD COLUMN purged_at BIGINT;

ALTER TABLE checkpoints ADD COLUMN tainted_at BIGINT;

ALTER TABLE checkpoints ADD COLUMN purged_at BIGINT;

CREATE INDEX interactions_by_actor ON interactions (project_id, actor);

CREATE INDEX feedback_by_actor ON feedback (project_id, actor);

CREATE INDEX feedback_by_quarantine ON feedback (quarantine_id);
