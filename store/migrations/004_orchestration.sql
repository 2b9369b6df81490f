-- What schedules, dispatchers and cohorts need to know about a job, a person and a message to deliver.

ALTER TABLE "FineTuningJob"
    -- How many flow runs have taken the job up: one that keeps losing its machine is not tried for ever.
    ADD COLUMN IF NOT EXISTS "attempts" integer NOT NULL DEFAULT 0,
    -- A dispatcher's lease on a waiting row: it is about to start a flow run for it.
    ADD COLUMN IF NOT EXISTS "dispatchedAt" timestamptz,
    -- Sent mails, and the last one's order of arrival, when the data set was made: what came later is new.
    ADD COLUMN IF NOT EXISTS "sentCount" bigint,
    ADD COLUMN IF NOT EXISTS "lastPosition" bigint,
    ADD COLUMN IF NOT EXISTS "etaSeconds" double precision;
CREATE INDEX IF NOT EXISTS "FineTuningJob_waiting_idx" ON "FineTuningJob" ("createdAt", "id")
    WHERE "status" = 'PENDING' AND "flowRunId" IS NULL;

-- Sent mails at the person's last finished training: + 100 retrains, fewer than 50 skips the monthly round.
ALTER TABLE "User" ADD COLUMN IF NOT EXISTS "sentCountTrained" bigint NOT NULL DEFAULT 0;
-- Whoever has an adapter already was trained on the mail of before: it must not all count as new.
UPDATE "User" u SET "sentCountTrained" = c.sent
FROM (SELECT a."userId", sum(m."sent") AS sent
      FROM "EmailAccount" a JOIN "MailCount" m ON m."emailAccountId" = a."id" GROUP BY 1) c
WHERE c."userId" = u."id" AND u."loraAdapterId" IS NOT NULL AND u."sentCountTrained" = 0;
CREATE INDEX IF NOT EXISTS "User_adapterNextTraining_idx" ON "User" ("adapterNextTraining")
    WHERE "adapterAutoRetrain" AND "voiceConsentAt" IS NOT NULL AND "loraAdapterId" IS NOT NULL;

-- The scan looks at accounts whose count grew since it last looked, and at no others.
ALTER TABLE "MailCount" ADD COLUMN IF NOT EXISTS "unscanned" boolean NOT NULL DEFAULT true;
CREATE INDEX IF NOT EXISTS "MailCount_unscanned_idx" ON "MailCount" ("emailAccountId") WHERE "unscanned";

DO $$
DECLARE
    flag text := current_setting('ownvoice.sent_column');
BEGIN
    EXECUTE format($make$
        CREATE OR REPLACE FUNCTION ownvoice_count_inserted() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            INSERT INTO "MailCount" AS c ("emailAccountId", "sent")
            SELECT "emailAccountId", count(*) FROM new_mail WHERE %1$I GROUP BY 1 ORDER BY 1
            ON CONFLICT ("emailAccountId")
                DO UPDATE SET "sent" = c."sent" + EXCLUDED."sent", "unscanned" = true;
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
            ON CONFLICT ("emailAccountId")
                DO UPDATE SET "sent" = c."sent" + EXCLUDED."sent", "unscanned" = true;
            RETURN NULL;
        END $body$;
    $make$, flag);
END $$;

-- Webhooks: a stable id for the receiver, an end to trying, and the order of one job's messages.
ALTER TABLE "Outbox"
    ADD COLUMN IF NOT EXISTS "eventId" text NOT NULL DEFAULT gen_random_uuid()::text,
    ADD COLUMN IF NOT EXISTS "givenUpAt" timestamptz;
CREATE UNIQUE INDEX IF NOT EXISTS "Outbox_eventId_key" ON "Outbox" ("eventId");
CREATE INDEX IF NOT EXISTS "Outbox_open_job_idx" ON "Outbox" ("jobId", "id")
    WHERE "deliveredAt" IS NULL AND "givenUpAt" IS NULL;
