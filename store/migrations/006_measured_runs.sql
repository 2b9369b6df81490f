-- Estimates read the newest measured trainings: of any base (where the pool trains now), and of one base.

CREATE INDEX IF NOT EXISTS "FineTuningJob_measured_idx" ON "FineTuningJob" ("createdAt" DESC)
    WHERE "metrics" ? 'deviceSeconds';
CREATE INDEX IF NOT EXISTS "FineTuningJob_measured_base_idx" ON "FineTuningJob" ("baseModel", "createdAt" DESC)
    WHERE "metrics" ? 'deviceSeconds';
