-- The first schema. Types are those that SQLite and PostgreSQL share. Times are microseconds since 1970 (UTC), JSON is text.

CREATE TABLE alerts (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  rule TEXT NOT NULL,
  state TEXT NOT NULL,
  severity TEXT NOT NULL,
  blocking BOOLEAN NOT NULL,
  value DOUBLE PRECISION NOT NULL,
  threshold DOUBLE PRECISION NOT NULL,
  message TEXT NOT NULL,
  opened_at BIGINT NOT NULL,
  resolved_at BIGINT,
  PRIMARY KEY (id)
);

CREATE TABLE annotations (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  comparison_id TEXT NOT NULL,
  annotator_id TEXT NOT NULL,
  guideline_id TEXT,
  criterion TEXT NOT NULL,
  verdict TEXT NOT NULL,
  choice TEXT,
  strength BIGINT,
  "order" TEXT NOT NULL,
  seconds DOUBLE PRECISION NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX annotation_once ON annotations (comparison_id, annotator_id, criterion);

CREATE INDEX annotations_by_annotator ON annotations (project_id, annotator_id);

CREATE TABLE api_keys (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  person_id TEXT,
  name TEXT NOT NULL,
  roles TEXT NOT NULL,
  secret_sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  revoked_at BIGINT,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX api_key_secret ON api_keys (secret_sha256);

CREATE TABLE approvals (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  release_id TEXT NOT NULL,
  stage TEXT NOT NULL,
  person TEXT NOT NULL,
  decision TEXT NOT NULL,
  reason TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE audit_entries (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  seq BIGINT NOT NULL,
  actor TEXT NOT NULL,
  role TEXT NOT NULL,
  action TEXT NOT NULL,
  object_id TEXT NOT NULL,
  before TEXT NOT NULL,
  after TEXT NOT NULL,
  previous_sha256 TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX audit_chain ON audit_entries (project_id, seq);

CREATE TABLE checkpoints (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  folder TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  base TEXT NOT NULL,
  run_id TEXT,
  parent_id TEXT,
  metrics TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE comparisons (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  interaction_id TEXT,
  kind TEXT NOT NULL,
  purpose TEXT NOT NULL,
  messages TEXT NOT NULL,
  family TEXT NOT NULL,
  response_ids TEXT NOT NULL,
  overlap BIGINT NOT NULL,
  priority BIGINT NOT NULL,
  reason TEXT NOT NULL,
  batch TEXT,
  state TEXT NOT NULL,
  attributes TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX comparisons_by_batch ON comparisons (project_id, batch);

CREATE INDEX comparisons_by_interaction ON comparisons (interaction_id);

CREATE INDEX comparisons_to_lend ON comparisons (project_id, state, priority DESC, id);

CREATE TABLE completions (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  status TEXT NOT NULL,
  model TEXT NOT NULL,
  prompt_tokens BIGINT,
  completion_tokens BIGINT,
  first_token_ms DOUBLE PRECISION,
  latency_ms DOUBLE PRECISION,
  error TEXT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE evaluations (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  checkpoint_id TEXT NOT NULL,
  against_id TEXT,
  suite TEXT NOT NULL,
  figures TEXT NOT NULL,
  gate TEXT,
  reasons TEXT NOT NULL,
  run_id TEXT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE experiments (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  candidate_id TEXT NOT NULL,
  control_id TEXT NOT NULL,
  salt TEXT NOT NULL,
  stages TEXT NOT NULL,
  stage BIGINT NOT NULL,
  stage_started_at TEXT NOT NULL,
  rules TEXT NOT NULL,
  state TEXT NOT NULL,
  figures TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  ended_at BIGINT,
  PRIMARY KEY (id)
);

CREATE TABLE feedback (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  interaction_id TEXT NOT NULL,
  response_idx BIGINT NOT NULL,
  kind TEXT NOT NULL,
  value TEXT NOT NULL,
  actor TEXT,
  natural_key TEXT,
  supersedes TEXT,
  retracted BOOLEAN NOT NULL,
  body_sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX feedback_by_interaction ON feedback (interaction_id, natural_key);

CREATE INDEX feedback_by_time ON feedback (project_id, created_at);

CREATE UNIQUE INDEX feedback_one_root ON feedback (natural_key) WHERE supersedes IS NULL;

CREATE UNIQUE INDEX feedback_supersedes_once ON feedback (supersedes);

CREATE TABLE guidelines (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  version BIGINT NOT NULL,
  text TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX guideline_version ON guidelines (project_id, version);

CREATE TABLE idempotency_keys (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  object_id TEXT NOT NULL,
  body_sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE interactions (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  conversation_id TEXT NOT NULL,
  turn BIGINT NOT NULL,
  actor TEXT,
  messages TEXT NOT NULL,
  family TEXT NOT NULL,
  prompt_sha256 TEXT NOT NULL,
  source TEXT NOT NULL,
  release_id TEXT,
  served_release_id TEXT,
  experiment_id TEXT,
  arm TEXT,
  stage BIGINT,
  assignment_probability DOUBLE PRECISION,
  sampling TEXT NOT NULL,
  training_use TEXT NOT NULL,
  attributes TEXT NOT NULL,
  config_version BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX interactions_by_conversation ON interactions (project_id, conversation_id);

CREATE INDEX interactions_by_experiment ON interactions (experiment_id, actor);

CREATE INDEX interactions_by_time ON interactions (project_id, created_at);

CREATE TABLE leases (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  comparison_id TEXT NOT NULL,
  annotator_id TEXT NOT NULL,
  "order" TEXT NOT NULL,
  guideline_id TEXT,
  state TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX leases_by_annotator ON leases (annotator_id, state);

CREATE INDEX leases_by_comparison ON leases (comparison_id, state);

CREATE TABLE measurements (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  metric TEXT NOT NULL,
  value DOUBLE PRECISION NOT NULL,
  low DOUBLE PRECISION,
  high DOUBLE PRECISION,
  n BIGINT NOT NULL,
  labels TEXT NOT NULL,
  window_start BIGINT NOT NULL,
  window_end BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX measurements_by_metric ON measurements (project_id, metric, window_end);

CREATE TABLE people (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  name TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX person_name ON people (project_id, name);

CREATE TABLE preferences (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  comparison_id TEXT,
  interaction_id TEXT,
  criterion TEXT NOT NULL,
  family TEXT NOT NULL,
  chosen_response_id TEXT NOT NULL,
  rejected_response_id TEXT NOT NULL,
  probability DOUBLE PRECISION NOT NULL,
  weight DOUBLE PRECISION NOT NULL,
  n_votes BIGINT NOT NULL,
  source TEXT NOT NULL,
  method TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX preference_once ON preferences (comparison_id, criterion);

CREATE INDEX preferences_by_project ON preferences (project_id, created_at);

CREATE TABLE projects (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  name TEXT NOT NULL,
  training_use_default TEXT NOT NULL,
  rating_min BIGINT NOT NULL,
  rating_max BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE releases (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  checkpoint_id TEXT,
  model TEXT NOT NULL,
  upstream TEXT NOT NULL,
  state TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  state_at BIGINT NOT NULL,
  live_at BIGINT,
  PRIMARY KEY (id)
);

CREATE TABLE responses (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  interaction_id TEXT,
  idx BIGINT NOT NULL,
  text TEXT NOT NULL,
  finish_reason TEXT,
  origin TEXT NOT NULL,
  model TEXT NOT NULL,
  checkpoint_id TEXT,
  logprob DOUBLE PRECISION,
  n_tokens BIGINT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX responses_by_interaction ON responses (interaction_id, idx);

CREATE TABLE runs (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  step TEXT NOT NULL,
  key TEXT NOT NULL,
  turn BIGINT NOT NULL,
  state TEXT NOT NULL,
  config TEXT NOT NULL,
  inputs TEXT NOT NULL,
  outputs TEXT NOT NULL,
  folder TEXT,
  owner TEXT,
  lease_expires_at BIGINT,
  attempt BIGINT NOT NULL,
  error TEXT,
  created_at BIGINT NOT NULL,
  started_at BIGINT,
  finished_at BIGINT,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX run_once ON runs (project_id, key);

CREATE INDEX runs_by_state ON runs (state, id);

CREATE TABLE snapshots (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  folder TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  counts TEXT NOT NULL,
  lineage TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);
