-- What the filters of the gateway said of a prompt and of an answer, and the tool calls of an answer as they came.

ALTER TABLE interactions ADD COLUMN verdicts TEXT NOT NULL DEFAULT '[]';
ALTER TABLE responses ADD COLUMN tool_calls TEXT NOT NULL DEFAULT '[]';
ALTER TABLE responses ADD COLUMN verdicts TEXT NOT NULL DEFAULT '[]';
