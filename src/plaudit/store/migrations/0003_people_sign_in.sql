-- People sign in: what each may do, and the one-time links that let them in.

ALTER TABLE people ADD COLUMN roles TEXT NOT NULL DEFAULT '[]';

ALTER TABLE people ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;

ALTER TABLE people ADD COLUMN removed_at BIGINT;

CREATE TABLE invitations (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  person_id TEXT NOT NULL,
  secret_sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  used_at BIGINT,
  PRIMARY KEY (id)
);

CREATE UNIQUE INDEX invitation_secret ON invitations (secret_sha256);

CREATE INDEX invitations_by_person ON invitations (person_id);
