-- Releases for a segment of users, experiments with declared metrics, pilots and holdouts, and what a candidate in shadow answered.

ALTER TABLE releases ADD COLUMN segment TEXT NOT NULL DEFAULT '';

DROP INDEX release_one_live;

CREATE UNIQUE INDEX release_one_live ON releases (project_id, segment) WHERE state = 'live';

ALTER TABLE experiments ADD COLUMN metrics TEXT NOT NULL DEFAULT '[]';

ALTER TABLE experiments ADD COLUMN pilot TEXT NOT NULL DEFAULT '{}';

ALTER TABLE experiments ADD COLUMN holdout DOUBLE PRECISION NOT NULL DEFAULT 0;

CREATE TABLE shadow_answers (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  release_id TEXT NOT NULL,
  interaction_id TEXT NOT NULL,
  status TEXT NOT NULL,
  latency_ms DOUBLE PRECISION NOT NULL,
  n_chars BIGINT NOT NULL,
  n_tokens BIGINT,
  refused BOOLEAN NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX shadow_answers_by_release ON shadow_answers (release_id, created_at);
