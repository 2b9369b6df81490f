-- Training jobs, their events and the webhooks to deliver.

CREATE TABLE IF NOT EXISTS "FineTuningJob" (
    "id" text PRIMARY KEY,
    "userId" text NOT NULL REFERENCES "User" ("id") ON DELETE CASCADE,
    "status" text NOT NULL DEFAULT 'PENDING',
    "baseModel" text NOT NULL
);
ALTER TABLE "FineTuningJob"
    ADD COLUMN IF NOT EXISTS "stage" text,
    ADD COLUMN IF NOT EXISTS "progress" double precision NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS "outcome" text,
    ADD COLUMN IF NOT EXISTS "trigger" text NOT NULL DEFAULT 'manual',
    ADD COLUMN IF NOT EXISTS "version" integer,
    ADD COLUMN IF NOT EXISTS "incrementalFrom" text,
    ADD COLUMN IF NOT EXISTS "trainingEmails" integer,
    ADD COLUMN IF NOT EXISTS "modelName" text,
    ADD COLUMN IF NOT EXISTS "loraRank" integer,
    ADD COLUMN IF NOT EXISTS "loraAlpha" double precision,
    ADD COLUMN IF NOT EXISTS "config" jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS "metrics" jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS "timings" jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS "adapterPath" text,
    ADD COLUMN IF NOT EXISTS "adapterSize" bigint,
    ADD COLUMN IF NOT EXISTS "adapterDigest" text,
    ADD COLUMN IF NOT EXISTS "estimatedSeconds" double precision,
    ADD COLUMN IF NOT EXISTS "estimatedCost" double precision,
    ADD COLUMN IF NOT EXISTS "actualCost" double precision,
    ADD COLUMN IF NOT EXISTS "errorCode" text,
    ADD COLUMN IF NOT EXISTS "errorMessage" text,
    ADD COLUMN IF NOT EXISTS "flowRunId" text,
    ADD COLUMN IF NOT EXISTS "idempotencyKey" text,
    ADD COLUMN IF NOT EXISTS "cancelRequested" boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS "createdAt" timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS "startedAt" timestamptz,
    ADD COLUMN IF NOT EXISTS "completedAt" timestamptz,
    ADD COLUMN IF NOT EXISTS "updatedAt" timestamptz NOT NULL DEFAULT now();

CREATE TABLE IF NOT EXISTS "FineTuningEvent" (
    "id" bigserial PRIMARY KEY,
    "jobId" text NOT NULL REFERENCES "FineTuningJob" ("id") ON DELETE CASCADE,
    "at" timestamptz NOT NULL DEFAULT clock_timestamp(),
    "level" text NOT NULL DEFAULT 'info',
    "type" text NOT NULL DEFAULT 'message',
    "message" text NOT NULL,
    "data" jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX IF NOT EXISTS "FineTuningEvent_jobId_id_idx" ON "FineTuningEvent" ("jobId", "id");

CREATE TABLE IF NOT EXISTS "Outbox" (
    "id" bigserial PRIMARY KEY,
    "userId" text NOT NULL REFERENCES "User" ("id") ON DELETE CASCADE,
    "jobId" text REFERENCES "FineTuningJob" ("id") ON DELETE CASCADE,
    "event" text NOT NULL,
    "payload" jsonb NOT NULL,
    "attempts" integer NOT NULL DEFAULT 0,
    "nextAttemptAt" timestamptz NOT NULL DEFAULT now(),
    "deliveredAt" timestamptz,
    "lastError" text,
    "createdAt" timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS "Outbox_due_idx" ON "Outbox" ("nextAttemptAt") WHERE "deliveredAt" IS NULL;

-- A Prisma enum cannot hold EVALUATING and cannot be compared with text, so "status" becomes text. (In the
-- app's schema.prisma the field becomes `String`.) An enum left over on other columns of ours the same.
DO $$
DECLARE
    enumerated record;
BEGIN
    FOR enumerated IN
        SELECT a.attname AS name, pg_get_expr(d.adbin, d.adrelid) AS initial
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = '"FineTuningJob"'::regclass AND t.typtype = 'e'
          AND a.attname IN ('status', 'stage', 'outcome', 'trigger')
    LOOP
        EXECUTE format('ALTER TABLE "FineTuningJob" ALTER COLUMN %I DROP DEFAULT', enumerated.name);
        EXECUTE format('ALTER TABLE "FineTuningJob" ALTER COLUMN %1$I TYPE text USING %1$I::text', enumerated.name);
    END LOOP;
END $$;
ALTER TABLE "FineTuningJob" ALTER COLUMN "status" SET DEFAULT 'PENDING';
SELECT ownvoice_default_required_columns(ARRAY['FineTuningJob']);

-- Jobs from before there were versions are numbered in the order they were made.
UPDATE "FineTuningJob" j SET "version" = n.version
FROM (SELECT "id", row_number() OVER (PARTITION BY "userId" ORDER BY "createdAt", "id") AS version
      FROM "FineTuningJob") n
WHERE n."id" = j."id" AND j."version" IS NULL;
ALTER TABLE "FineTuningJob" ALTER COLUMN "version" SET NOT NULL;

-- The seeds' worker allowed several unfinished jobs a person. Only the newest may stay.
WITH superseded AS (
    UPDATE "FineTuningJob" j
    SET "status" = 'FAILED', "errorCode" = 'SUPERSEDED', "completedAt" = now(), "updatedAt" = now(),
        "errorMessage" = 'A newer job of this user was waiting when Ownvoice took over. Start a new one if needed.'
    FROM (SELECT "id", row_number() OVER (PARTITION BY "userId" ORDER BY "createdAt" DESC, "id" DESC) AS age
          FROM "FineTuningJob" WHERE "status" NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')) a
    WHERE a."id" = j."id" AND a.age > 1
    RETURNING j."id"
)
INSERT INTO "FineTuningEvent" ("jobId", "level", "type", "message", "data")
SELECT "id", 'error', 'status', 'Failed: superseded by a newer job', '{"status": "FAILED"}' FROM superseded;

CREATE UNIQUE INDEX IF NOT EXISTS "FineTuningJob_one_active_key" ON "FineTuningJob" ("userId")
    WHERE "status" NOT IN ('COMPLETED', 'FAILED', 'CANCELLED');
CREATE UNIQUE INDEX IF NOT EXISTS "FineTuningJob_idempotencyKey_key" ON "FineTuningJob" ("idempotencyKey");
CREATE INDEX IF NOT EXISTS "FineTuningJob_userId_version_idx" ON "FineTuningJob" ("userId", "version" DESC);
CREATE INDEX IF NOT EXISTS "FineTuningJob_createdAt_idx" ON "FineTuningJob" ("createdAt" DESC);
