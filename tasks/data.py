"""From the user's mail in the store to the data set in the job folder. CPU side."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from store import jobs
from store.rates import measured_runs
from tasks.job_folder import DATASET, HELD_OUT, LEARNT, OLD_HELD_OUT, OLD_SET, PANEL, REPORT
from tasks.playback import give_instructions
from tasks.progress import not_essential
from tasks.stages import require_consent, stage
from tasks.tools import database, job_folder, settings, without_mail_text
from tasks.training_mail import can_go_on, plan_retrain, read_learnt_mail, read_training_mail
from training.adapter_size import adapter_bytes, describe_adapter_size
from training.base_models import find_base_model
from training.choose import Chosen, choose, go_on_in_shape
from training.config import TrainConfig, load_train_config, parse_train_config
from training.dataset import OldSet, Prepared, prepare, require_enough, to_jsonl
from training.errors import StoreError
from training.estimate import characters_of, estimate_training, rates_of
from training.gate_config import load_gate_config
from training.panel import panel_members
from training.panel_file import to_panel_jsonl
from training.schemas import DataReport, Job, JobMetrics, RetrainMode, Stage


@task(
    # Mail is read from the database, which may be restarting; cleaning the same mail again changes nothing.
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=lambda task, run, state: isinstance(_error_of(state), StoreError),
    cache_policy=NO_CACHE,
)
def prepare_data(job_id: str) -> DataReport:
    """Read the sent mail that the mode asks for, keep the user's own words, split and write the data set.

    One task for two stages, because mail passes between them only in memory. A data set that an earlier
    attempt finished is used again. Raises NoConsent and NotEnoughMail.
    """
    db, folder = database(), job_folder(job_id)
    job = jobs.find_job(db, job_id)
    require_consent(job.user_id)
    if all(folder.exists(name) for name in (REPORT, DATASET, HELD_OUT)) and can_go_on(job):
        return DataReport.model_validate(folder.read_json(REPORT))
    config = config_of(job)
    with stage(job_id, Stage.EXTRACT), without_mail_text("Reading the mail"):
        plan = plan_retrain(job, config)
        found = read_training_mail(job, config, plan)
        jobs.record(
            db,
            job_id,
            incremental_from=plan.start_adapter,
            sent_count=found.sent,
            last_position=found.last_position,
        )
    for notice in filter(None, (plan.notice, found.chosen)):
        jobs.add_event(db, job_id, notice)
    with stage(job_id, Stage.PREPARE), without_mail_text("Preparing the data set"):
        prepared = prepare(
            found.mails, config.data, sent=found.sent, drafted=found.drafted, retrain=found.retrain
        )
        prepared = give_instructions(job, config, prepared)
        chosen = choose(config, prepared.train)
        report = with_estimate(prepared, chosen, job)
        _record(job_id, report, characters_of(prepared.train, config))
        require_enough(report, config.data, only_new=found.retrain.only_new)
        record_choice(job_id, chosen)
        folder.write_text(DATASET, to_jsonl(prepared.train))
        folder.write_text(HELD_OUT, to_jsonl(prepared.held_out))
        folder.write_text(OLD_HELD_OUT, to_jsonl(prepared.old))
        folder.write_text(LEARNT, to_jsonl(read_learnt_mail(job, config, plan)))
        old = plan.old if plan.old.mails else OldSet.of(prepared.held_out)
        folder.write_json(OLD_SET, old.to_json_dict())
        # The GPU side trains the reference adapters, and has no cleaner to read mailboxes with.
        own = (*prepared.train, *prepared.held_out)
        folder.write_text(PANEL, to_panel_jsonl(panel_members(load_gate_config(settings().gate), own)))
        # Written last: its presence says that the data set is whole.
        folder.write_json(REPORT, report.to_json_dict())
    for sentence in filter(None, (report.reason, report.chosen)):
        jobs.add_event(db, job_id, sentence)
    get_run_logger().info(
        "%d usable of %d sent: %d train, %d held out",
        report.usable,
        report.sent,
        report.train,
        report.held_out,
    )
    return report


def config_of(job: Job) -> TrainConfig:
    """Return the job's configuration; a row that the app wrote without one is trained with the default.

    What an incremental training leaves to the data has the shape of the adapter in use. Raises ConfigError.
    """
    config = parse_train_config(job.config) if job.config else load_train_config(settings().train_config)
    if config.mode is RetrainMode.INCREMENTAL:
        current = jobs.current_adapter(database(), job.user_id)
        if current is not None:
            config = go_on_in_shape(config, current.lora_rank, current.lora_alpha)
    return config


def record_choice(job_id: str, chosen: Chosen) -> None:
    """Keep the numbers with the job: its training, a retry and an exact re-run read them from there."""
    jobs.record(
        database(),
        job_id,
        config=chosen.config.model_dump(mode="json"),
        lora_rank=chosen.config.lora.rank,
        lora_alpha=chosen.config.lora.alpha,
        metrics=JobMetrics(chosen=chosen.reason),
    )


def with_estimate(prepared: Prepared, chosen: Chosen, job: Job) -> DataReport:
    """Add what was chosen, and minutes, tokens and cost, from what was measured of this base where trainings
    run now."""
    base, config = find_base_model(job.base_model), chosen.config
    rates = rates_of(base, config, *measured_runs(database(), base.id))
    estimate = estimate_training(prepared.train, config, rates, settings().hourly_price)
    sized = estimate.model_copy(update={"adapter_bytes": adapter_bytes(base, config)})
    return prepared.report.model_copy(update={"estimate": sized, "chosen": chosen.reason})


def _record(job_id: str, report: DataReport, characters: int) -> None:
    assert report.estimate is not None
    jobs.record(
        database(),
        job_id,
        training_emails=report.train,
        estimated_seconds=report.estimate.seconds,
        estimated_cost=report.estimate.cost,
        metrics={"train_characters": characters},
    )
    with not_essential("The data report"):
        create_markdown_artifact(
            key=f"data-report-{job_id}",
            markdown=data_report_markdown(report),
            description="What became of the mail",
        )


def data_report_markdown(report: DataReport) -> str:
    """Return the report as a Markdown table: counts by reason, never text."""
    rows = [f"| kept: usable | {report.usable} |"]
    rows += [f"| dropped: {reason.label} | {count} |" for reason, count in report.dropped.items()]
    sentences = (report.reason, report.languages_sentence, report.instructions, report.chosen)
    said = "\n\n".join(filter(None, sentences))
    estimate = report.estimate
    took = (
        f"\n\nEstimate: {estimate.seconds:.0f} s, {estimate.tokens} tokens, ${estimate.cost:.2f}; "
        f"adapter about {describe_adapter_size(estimate.adapter_bytes)}."
        if estimate
        else ""
    )
    return (
        f"{said}\n\n| {report.sent} sent mails | |\n|---|---:|\n"
        + "\n".join(rows)
        + f"\n\n{report.train} for training, {report.held_out} held out (newest threads).{took}"
    )


def _error_of(state: object) -> BaseException | None:
    data = getattr(state, "data", None)
    return data if isinstance(data, BaseException) else None
