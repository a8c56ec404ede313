-- What is told of a group concerns all wards in it, and in groups within it.
DROP INDEX event_gave_up;
CREATE INDEX event_of_group ON event(grp) WHERE kind IN ('group_gave_up', 'group_restart', 'group_shut_down');
