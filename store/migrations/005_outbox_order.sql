-- Finding the messages that are due, and forgetting those that are done with, without reading the whole table.

DROP INDEX IF EXISTS "Outbox_due_idx"; -- it also held what was given up, for ever due
CREATE INDEX IF NOT EXISTS "Outbox_open_due_idx" ON "Outbox" ("nextAttemptAt", "id")
    WHERE "deliveredAt" IS NULL AND "givenUpAt" IS NULL;
-- Messages that belong to no job are ordered per person.
CREATE INDEX IF NOT EXISTS "Outbox_open_user_idx" ON "Outbox" ("userId", "id")
    WHERE "jobId" IS NULL AND "deliveredAt" IS NULL AND "givenUpAt" IS NULL;
CREATE INDEX IF NOT EXISTS "Outbox_ended_idx" ON "Outbox" ("createdAt")
    WHERE "deliveredAt" IS NOT NULL OR "givenUpAt" IS NOT NULL;
CREATE INDEX IF NOT EXISTS "Outbox_jobId_idx" ON "Outbox" ("jobId");
