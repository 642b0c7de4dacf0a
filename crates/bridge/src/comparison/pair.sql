-- Pairs each message with one of the other side: of those that may be paired, the nth with the nth.
CREATE INDEX message_id ON message (side, id, content);
CREATE INDEX message_content ON message (side, content);

-- Alike, with the same id.
INSERT INTO pair
WITH nth AS (
    SELECT side, place, id, content, row_number() OVER (PARTITION BY side, id, content ORDER BY place) AS nth
    FROM message
)
SELECT one.place, other.place, 1
FROM nth AS one JOIN nth AS other ON other.id = one.id AND other.content = one.content AND other.nth = one.nth
WHERE one.side = 0 AND other.side = 1;

-- The others of an id: changed.
INSERT INTO pair
WITH nth AS (
    SELECT side, place, id, row_number() OVER (PARTITION BY side, id ORDER BY place) AS nth
    FROM message
    WHERE CASE side
        WHEN 0 THEN place NOT IN (SELECT first FROM pair)
        ELSE place NOT IN (SELECT second FROM pair)
    END
)
SELECT one.place, other.place, 0
FROM nth AS one JOIN nth AS other ON other.id = one.id AND other.nth = one.nth
WHERE one.side = 0 AND other.side = 1;

-- Of one content, those whose id was made up in the first with any of the second, those with an id before the others,
INSERT INTO pair
WITH nth AS (
    SELECT side, place, content,
        row_number() OVER (PARTITION BY side, content ORDER BY is_made_up, place) AS nth
    FROM message
    WHERE CASE side
        WHEN 0 THEN is_made_up AND place NOT IN (SELECT first FROM pair)
        ELSE place NOT IN (SELECT second FROM pair)
    END
)
SELECT one.place, other.place, 1
FROM nth AS one JOIN nth AS other ON other.content = one.content AND other.nth = one.nth
WHERE one.side = 0 AND other.side = 1;

-- and those whose id was made up in the second with those that are left of the first.
INSERT INTO pair
WITH nth AS (
    SELECT side, place, content, row_number() OVER (PARTITION BY side, content ORDER BY place) AS nth
    FROM message
    WHERE CASE side
        WHEN 0 THEN place NOT IN (SELECT first FROM pair)
        ELSE is_made_up AND place NOT IN (SELECT second FROM pair)
    END
)
SELECT one.place, other.place, 1
FROM nth AS one JOIN nth AS other ON other.content = one.content AND other.nth = one.nth
WHERE one.side = 0 AND other.side = 1;
