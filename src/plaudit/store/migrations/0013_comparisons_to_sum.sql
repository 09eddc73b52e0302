-- What the lead's page counts of questions stands in an index, so that it need not read the conversations.

CREATE INDEX comparisons_to_sum ON comparisons (project_id, purpose, state, batch, id, overlap, domain, created_at);
