-- Users, their accounts and their mail. Every statement also fits a database that the app's own Prisma
-- migrations made: tables and columns are added only where they are missing, nothing of the app's is dropped.

CREATE TABLE IF NOT EXISTS "User" (
    "id" text PRIMARY KEY,
    "email" text NOT NULL
);
ALTER TABLE "User"
    ADD COLUMN IF NOT EXISTS "aiProvider" text,
    ADD COLUMN IF NOT EXISTS "aiModel" text,
    ADD COLUMN IF NOT EXISTS "loraAdapterId" text,
    ADD COLUMN IF NOT EXISTS "loraAdapterPath" text,
    ADD COLUMN IF NOT EXISTS "adapterLastTrained" timestamptz,
    ADD COLUMN IF NOT EXISTS "adapterNextTraining" timestamptz,
    ADD COLUMN IF NOT EXISTS "adapterAutoRetrain" boolean NOT NULL DEFAULT true,
    ADD COLUMN IF NOT EXISTS "adapterTrainingInterval" integer NOT NULL DEFAULT 30,
    ADD COLUMN IF NOT EXISTS "adapterTrainingCount" integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS "voiceConsentAt" timestamptz,
    ADD COLUMN IF NOT EXISTS "sentCountNotified" integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS "createdAt" timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS "updatedAt" timestamptz NOT NULL DEFAULT now();

-- The app may hold two addresses that differ only in case; then the index serves the look-up alone.
DO $$
BEGIN
    CREATE UNIQUE INDEX IF NOT EXISTS "User_email_lower_key" ON "User" (lower("email"));
EXCEPTION WHEN unique_violation THEN
    CREATE INDEX IF NOT EXISTS "User_email_lower_idx" ON "User" (lower("email"));
END $$;

CREATE TABLE IF NOT EXISTS "EmailAccount" (
    "id" text PRIMARY KEY,
    "userId" text NOT NULL REFERENCES "User" ("id") ON DELETE CASCADE,
    "email" text NOT NULL
);
ALTER TABLE "EmailAccount"
    ADD COLUMN IF NOT EXISTS "aliases" text[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS "createdAt" timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS "updatedAt" timestamptz NOT NULL DEFAULT now();
CREATE INDEX IF NOT EXISTS "EmailAccount_userId_idx" ON "EmailAccount" ("userId");

CREATE TABLE IF NOT EXISTS "EmailMessage" (
    "id" text PRIMARY KEY,
    "emailAccountId" text NOT NULL REFERENCES "EmailAccount" ("id") ON DELETE CASCADE,
    "threadId" text NOT NULL,
    "messageId" text NOT NULL,
    "from" text NOT NULL DEFAULT '',
    "to" text NOT NULL DEFAULT ''
);
ALTER TABLE "EmailMessage"
    ADD COLUMN IF NOT EXISTS "inReplyTo" text,
    ADD COLUMN IF NOT EXISTS "cc" text,
    ADD COLUMN IF NOT EXISTS "subject" text,
    ADD COLUMN IF NOT EXISTS "bodyText" text,
    ADD COLUMN IF NOT EXISTS "bodyHtml" text,
    ADD COLUMN IF NOT EXISTS "headers" jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS "sentAt" timestamptz,
    ADD COLUMN IF NOT EXISTS "aiGenerated" boolean NOT NULL DEFAULT false,
    -- Order of arrival: the order of mail without a date.
    ADD COLUMN IF NOT EXISTS "position" bigserial,
    ADD COLUMN IF NOT EXISTS "createdAt" timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS "updatedAt" timestamptz NOT NULL DEFAULT now();

-- The sent flag has the name that the installation's setting gives it (the upstream app says "sent").
DO $$
DECLARE
    flag text := current_setting('ownvoice.sent_column');
BEGIN
    EXECUTE format('ALTER TABLE "EmailMessage" ADD COLUMN IF NOT EXISTS %I boolean NOT NULL DEFAULT false', flag);
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS "EmailMessage_sent_idx" ON "EmailMessage"
             ("emailAccountId", "sentAt" DESC NULLS LAST, "position" DESC) WHERE %I',
        flag
    );
END $$;

-- One row per message of an account, whoever stores it: an import that runs twice adds nothing.
CREATE UNIQUE INDEX IF NOT EXISTS "EmailMessage_account_message_key"
    ON "EmailMessage" ("emailAccountId", "messageId");

-- The app's tables may require columns that we know nothing of (updatedAt without a default, "read", "draft",
-- "fromDomain" …). Prisma always sends every value, so a default changes nothing for it and lets our inserts
-- through. Columns of keys and unique indexes are left alone: no constant is right there.
CREATE OR REPLACE FUNCTION ownvoice_default_required_columns(tables text[]) RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    required record;
BEGIN
    FOR required IN
        SELECT a.attrelid::regclass AS relation, a.attname AS name, t.typcategory AS category, t.oid AS type
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = ANY (SELECT to_regclass(format('%I', name)) FROM unnest(tables) AS name)
          AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
          AND NOT EXISTS (SELECT 1 FROM pg_constraint c
                          WHERE c.conrelid = a.attrelid AND c.contype IN ('p', 'u', 'f') AND a.attnum = ANY (c.conkey))
          AND NOT EXISTS (SELECT 1 FROM pg_index i
                          WHERE i.indrelid = a.attrelid AND i.indisunique AND a.attnum = ANY (i.indkey::int2[]))
    LOOP
        IF required.name IN ('createdAt', 'updatedAt') THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT now()', required.relation, required.name);
        ELSIF required.category = 'B' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT false', required.relation, required.name);
        ELSIF required.category = 'N' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT 0', required.relation, required.name);
        ELSIF required.category = 'S' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %L', required.relation, required.name, '');
        ELSIF required.category = 'D' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %L', required.relation, required.name, 'epoch');
        END IF;
    END LOOP;
END $body$;
SELECT ownvoice_default_required_columns(ARRAY['User', 'EmailAccount', 'EmailMessage']);

-- The upstream app keeps the date in "date". Its rows get a "sentAt" now and from every later write; a row of
-- ours, which knows no "date", gets one ('epoch' is the default set above: no believable date).
DO $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM pg_attribute
        WHERE attrelid = '"EmailMessage"'::regclass AND attname = 'date' AND NOT attisdropped
          AND atttypid IN ('timestamp'::regtype, 'timestamptz'::regtype)
    ) THEN
        SET LOCAL TIME ZONE 'UTC'; -- Prisma's timestamps are UTC without saying so
        UPDATE "EmailMessage" SET "sentAt" = "date" WHERE "sentAt" IS NULL AND "date" >= '1980-02-01';
        CREATE OR REPLACE FUNCTION ownvoice_sent_at() RETURNS trigger LANGUAGE plpgsql
        SET timezone = 'UTC' AS $body$
        BEGIN
            IF NEW."sentAt" IS NULL AND NEW."date" >= '1980-02-01' THEN
                NEW."sentAt" := NEW."date";
            ELSIF NEW."sentAt" IS NOT NULL AND NEW."date" = 'epoch' THEN
                NEW."date" := NEW."sentAt";
            END IF;
            RETURN NEW;
        END $body$;
        CREATE OR REPLACE TRIGGER "ownvoice_sent_at" BEFORE INSERT OR UPDATE OF "date" ON "EmailMessage"
            FOR EACH ROW EXECUTE FUNCTION ownvoice_sent_at();
    END IF;
END $$;
