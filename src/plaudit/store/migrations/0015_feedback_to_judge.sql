-- A week of feedback is judged for signs of abuse from the index alone, in the order in which it came.

DROP INDEX feedback_by_time;
CREATE INDEX feedback_by_time ON feedback (project_id, created_at, id, actor, interaction_id, kind, quarantine_id);
