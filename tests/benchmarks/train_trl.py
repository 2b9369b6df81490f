"""Child of the training benchmark: TRL's SFTTrainer on the same token ids.

With `defaults` in the request, SFTConfig decides for itself: batch size, order, gradient checkpointing,
schedule and rate are TRL's, attention is transformers' choice; only the steps, the loss on replies and the
quiet are ours. The adapter is saved at the end, as a user would.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.child import Report, serve
from tests.benchmarks.step_clock import StepClock
from tests.benchmarks.train_data import read_examples, read_weights_path

MAILS_PER_STEP = 8


def _train(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from training.config import load_train_config

    work = Path(request["work"])
    config = load_train_config(request["preset"])
    report(0, 1, "loading")
    weights = read_weights_path(work)
    chosen = {} if request["defaults"] else {"attn_implementation": request["attention"]}
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.bfloat16, **chosen)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    examples = [
        {
            "input_ids": e["input_ids"],
            "completion_mask": [int(n >= e["prompt_length"]) for n in range(len(e["input_ids"]))],
        }
        for e in read_examples(work)
    ]
    on_cuda = torch.cuda.is_available()
    losses: list[float] = []
    tokens = 0
    clock = StepClock()
    clock.watch_inputs(model.get_input_embeddings())

    class CountingTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal tokens
            tokens += int(inputs["attention_mask"].sum())
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(float(loss))
            return loss

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_cuda:
                torch.cuda.synchronize()
            clock.step_done(tokens)
            report(state.global_step, state.max_steps, f"step {state.global_step} of {state.max_steps}")

    tuned = {
        "per_device_train_batch_size": MAILS_PER_STEP,
        "train_sampling_strategy": request["sampling"],
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_fraction,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": False,
        "bf16": True,
    }
    with TemporaryDirectory(dir=work) as out:
        trainer = CountingTrainer(
            model=model,
            args=SFTConfig(
                output_dir=out,
                max_steps=request["steps"],
                max_length=config.max_seq_tokens,
                completion_only_loss=True,
                use_cpu=not on_cuda,
                dataloader_pin_memory=on_cuda,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=config.seed,
                **({} if request["defaults"] else tuned),
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                lora_dropout=config.lora.dropout,
                target_modules=list(config.lora.target_modules),
            ),
            callbacks=[Clock()],
        )
        trainer.train()
        trainer.save_model(out)
        used = trainer.args
    return {
        **clock.figures(),
        "loss": round(losses[-1], 4),
        "device": torch.cuda.get_device_name() if on_cuda else f"cpu ({torch.get_num_threads()} threads)",
        "attention": str(model.config._attn_implementation),
        "sampling": str(used.train_sampling_strategy),
        "mails_per_step": used.per_device_train_batch_size,
        "gradient_checkpointing": used.gradient_checkpointing,
    }


if __name__ == "__main__":
    serve(_train)
