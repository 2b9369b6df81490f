"""Child of the training benchmark: transformers and PEFT in the loop that everybody writes.

The batches are ours (`plan_epoch`), padded to the longest mail; the loss is the model's own, on reply tokens
by their labels; AdamW on the adapter's parameters; attention as transformers chooses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.child import Report, serve
from tests.benchmarks.step_clock import StepClock
from tests.benchmarks.train_data import read_encoded, read_weights_path


def _train(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from training.config import load_train_config
    from training.plan import plan_epoch

    work = Path(request["work"])
    config = load_train_config(request["preset"])
    report(0, 1, "loading")
    dtype = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    torch.manual_seed(config.seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(read_weights_path(work), dtype=dtype),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.target_modules),
        ),
    ).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    examples = read_encoded(work)
    plan = plan_epoch(examples, config.batch_tokens, config.seed)[: request["steps"]]
    clock = StepClock()
    clock.watch_inputs(model.get_input_embeddings())
    tokens, last_loss = 0, 0.0
    clock.start()
    for step, batch in enumerate(plan, start=1):
        mails = [examples[index] for index in batch]
        longest = max(len(mail.input_ids) for mail in mails)
        ids = torch.zeros((len(mails), longest), dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, mail in enumerate(mails):
            length = len(mail.input_ids)
            ids[row, :length] = torch.tensor(mail.input_ids)
            mask[row, :length] = 1
            labels[row, mail.prompt_length : length] = ids[row, mail.prompt_length : length]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        last_loss = float(loss.detach())
        tokens += int(mask.sum())
        clock.step_done(tokens)
        report(step, len(plan), f"step {step} of {len(plan)}")
    return {
        **clock.figures(),
        "loss": round(last_loss, 4),
        "device": f"cpu ({torch.get_num_threads()} threads)",
    }


if __name__ == "__main__":
    serve(_train)
