-- What happened. `body` is the whole of it, a wardkeep.v1.Event; the columns beside it are for people.
CREATE TABLE event (
  sequence    INTEGER PRIMARY KEY,
  at          INTEGER NOT NULL, -- milliseconds since 1970, UTC
  kind        TEXT NOT NULL,
  node        TEXT NOT NULL,    -- '': the supervisor itself
  ward        TEXT NOT NULL,    -- '': the node itself
  grp         TEXT NOT NULL,    -- the ward's group
  incarnation INTEGER NOT NULL,
  text        TEXT NOT NULL,
  error_id    TEXT NOT NULL,
  actor       TEXT NOT NULL,
  epoch       INTEGER NOT NULL,
  body        BLOB NOT NULL
) STRICT;
CREATE INDEX event_place ON event(node, ward);
CREATE INDEX event_at ON event(at);
CREATE INDEX event_gave_up ON event(grp) WHERE kind = 'group_gave_up';

-- What was decided; open until its effect was seen or it was given up.
CREATE TABLE intent (
  id          INTEGER PRIMARY KEY,
  aim         TEXT NOT NULL,
  node        TEXT NOT NULL,
  ward        TEXT NOT NULL,
  incarnation INTEGER NOT NULL, -- the one that ended, or is to end
  boot        TEXT NOT NULL,
  counted     INTEGER NOT NULL,
  asked       INTEGER NOT NULL,
  drain_ms    INTEGER,
  decided_at  INTEGER NOT NULL,
  due_at      INTEGER NOT NULL,
  reason      TEXT NOT NULL,
  actor       TEXT NOT NULL,
  error_id    TEXT NOT NULL,
  traceparent TEXT NOT NULL,
  epoch       INTEGER NOT NULL,
  closed_at   INTEGER,
  outcome     TEXT
) STRICT;
CREATE INDEX intent_open ON intent(node, ward) WHERE closed_at IS NULL;
CREATE INDEX intent_closed ON intent(closed_at) WHERE closed_at IS NOT NULL;

-- Wards that rest until an operator starts them.
CREATE TABLE hold (
  node        TEXT NOT NULL,
  ward        TEXT NOT NULL,
  quarantined INTEGER NOT NULL,
  PRIMARY KEY (node, ward)
) STRICT, WITHOUT ROWID;
