-- Ratings of one response, criteria beside the whole, and work assigned to annotators.

ALTER TABLE comparisons ADD COLUMN criteria TEXT NOT NULL DEFAULT '[]';

ALTER TABLE annotations ADD COLUMN rating BIGINT;

ALTER TABLE standings ADD COLUMN batches TEXT NOT NULL DEFAULT '[]';

ALTER TABLE standings ADD COLUMN domains TEXT NOT NULL DEFAULT '[]';

CREATE INDEX annotations_to_sum ON annotations (project_id, criterion, comparison_id, choice, verdict, annotator_id, created_at);

DROP INDEX annotations_by_annotator;

CREATE INDEX annotations_by_annotator ON annotations (project_id, annotator_id, criterion, seconds, verdict);
