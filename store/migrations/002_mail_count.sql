-- How many sent mails each account holds, kept by statement-level triggers: the daily scan reads one small
-- table instead of counting all mail, and a COPY of 10,000 rows costs one extra UPDATE. Keyed by account, so
-- that deleting an account or handing it to another user needs no arithmetic; a person's count is the sum.

CREATE TABLE IF NOT EXISTS "MailCount" (
    "emailAccountId" text PRIMARY KEY REFERENCES "EmailAccount" ("id") ON DELETE CASCADE,
    "sent" bigint NOT NULL DEFAULT 0
);

DO $$
DECLARE
    flag text := current_setting('ownvoice.sent_column');
BEGIN
    EXECUTE format($make$
        CREATE OR REPLACE FUNCTION ownvoice_count_inserted() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            INSERT INTO "MailCount" AS c ("emailAccountId", "sent")
            SELECT "emailAccountId", count(*) FROM new_mail WHERE %1$I GROUP BY 1 ORDER BY 1
            ON CONFLICT ("emailAccountId") DO UPDATE SET "sent" = c."sent" + EXCLUDED."sent";
            RETURN NULL;
        END $body$;

        CREATE OR REPLACE FUNCTION ownvoice_count_deleted() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            -- No row is made here: when the account itself goes, its count has gone or goes with it.
            UPDATE "MailCount" c SET "sent" = c."sent" - o.n
            FROM (SELECT "emailAccountId", count(*) AS n FROM old_mail WHERE %1$I GROUP BY 1) o
            WHERE c."emailAccountId" = o."emailAccountId";
            RETURN NULL;
        END $body$;

        CREATE OR REPLACE FUNCTION ownvoice_count_updated() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            INSERT INTO "MailCount" AS c ("emailAccountId", "sent")
            SELECT "emailAccountId", sum(n) FROM (
                SELECT "emailAccountId", count(*) AS n FROM new_mail WHERE %1$I GROUP BY 1
                UNION ALL
                SELECT "emailAccountId", -count(*) FROM old_mail WHERE %1$I GROUP BY 1
            ) changes
            GROUP BY 1 HAVING sum(n) <> 0 ORDER BY 1
            ON CONFLICT ("emailAccountId") DO UPDATE SET "sent" = c."sent" + EXCLUDED."sent";
            RETURN NULL;
        END $body$;
    $make$, flag);
END $$;

CREATE OR REPLACE FUNCTION ownvoice_count_truncated() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    DELETE FROM "MailCount";
    RETURN NULL;
END $body$;

-- Nobody may write between the first count and the triggers.
LOCK TABLE "EmailMessage" IN SHARE ROW EXCLUSIVE MODE;

CREATE OR REPLACE TRIGGER "ownvoice_count_inserted" AFTER INSERT ON "EmailMessage"
    REFERENCING NEW TABLE AS new_mail FOR EACH STATEMENT EXECUTE FUNCTION ownvoice_count_inserted();
CREATE OR REPLACE TRIGGER "ownvoice_count_deleted" AFTER DELETE ON "EmailMessage"
    REFERENCING OLD TABLE AS old_mail FOR EACH STATEMENT EXECUTE FUNCTION ownvoice_count_deleted();
CREATE OR REPLACE TRIGGER "ownvoice_count_updated" AFTER UPDATE ON "EmailMessage"
    REFERENCING OLD TABLE AS old_mail NEW TABLE AS new_mail
    FOR EACH STATEMENT EXECUTE FUNCTION ownvoice_count_updated();
CREATE OR REPLACE TRIGGER "ownvoice_count_truncated" AFTER TRUNCATE ON "EmailMessage"
    FOR EACH STATEMENT EXECUTE FUNCTION ownvoice_count_truncated();

DO $$
BEGIN
    EXECUTE format(
        'INSERT INTO "MailCount" ("emailAccountId", "sent")
         SELECT "emailAccountId", count(*) FROM "EmailMessage" WHERE %I GROUP BY 1
         ON CONFLICT ("emailAccountId") DO UPDATE SET "sent" = EXCLUDED."sent"',
        current_setting('ownvoice.sent_column')
    );
END $$;
