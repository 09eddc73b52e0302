-- Scores of the answers that monitors draw, one by one, so that an experiment can compare them between its arms.

CREATE TABLE response_scores (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  checkpoint_id TEXT NOT NULL,
  value DOUBLE PRECISION NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);
