-- At most one live release per project, held by the database too. Where two stood, the newest was the one that was served: the others retire.

UPDATE releases SET state = 'retired'
WHERE state = 'live' AND EXISTS (
  SELECT 1 FROM releases AS newer
  WHERE newer.project_id = releases.project_id AND newer.state = 'live' AND newer.id > releases.id
);

CREATE UNIQUE INDEX release_one_live ON releases (project_id) WHERE state = 'live';
