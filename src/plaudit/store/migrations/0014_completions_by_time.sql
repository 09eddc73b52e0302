-- Monitoring reads what ended in a window: an answer that is still being written when a window closes belongs to the next one.

CREATE INDEX completions_by_time ON completions (project_id, created_at);
