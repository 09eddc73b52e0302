-- What people have said of the rights in imports and in the answers of models that are not ours.

CREATE TABLE licences (
  id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  subject TEXT NOT NULL,
  name TEXT NOT NULL,
  licence TEXT NOT NULL,
  terms TEXT NOT NULL,
  "by" TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);
