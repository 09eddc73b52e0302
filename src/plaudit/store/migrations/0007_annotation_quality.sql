-- Quality of annotation: gold, reasons and flags, who may be lent questions, what an expert looks at again.

ALTER TABLE comparisons ADD COLUMN domain TEXT;

ALTER TABLE comparisons ADD COLUMN gold_choice TEXT;

ALTER TABLE annotations ADD COLUMN reasons TEXT NOT NULL DEFAULT '[]';

ALTER TABLE annotations ADD COLUMN note TEXT;

ALTER TABLE annotations ADD COLUMN edit TEXT;

ALTER TABLE annotations ADD COLUMN flagged BOOLEAN NOT NULL DEFAULT FALSE;

CREATE INDEX comparisons_gold ON comparisons (project_id) WHERE gold_choice IS NOT NULL;

CREATE TABLE standings (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  person_id TEXT NOT NULL,
  paused_at BIGINT,
  paused_by TEXT,
  pause_reason TEXT,
  gold_since BIGINT,
  qualifications TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX standing_once ON standings (project_id, person_id);

CREATE TABLE reviews (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  comparison_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  probability DOUBLE PRECISION,
  expert_id TEXT,
  verdict TEXT,
  choice TEXT,
  confidence BIGINT,
  error_class TEXT,
  note TEXT,
  decided_at BIGINT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX review_once ON reviews (comparison_id);

CREATE INDEX reviews_waiting ON reviews (project_id, decided_at);
