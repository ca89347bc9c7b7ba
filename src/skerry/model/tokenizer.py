"""Whether a tokenizer fits a model of transformers."""

from typing import Any


def check_tokenizer(model: Any, tokenizer: Any, block: int = 0) -> None:
    """Raise ValueError if ``tokenizer`` has more tokens than ``model`` has embeddings, or a block more than positions.

    Args:
        model: of transformers.
        tokenizer: of transformers or tokenizers.
        block: tokens that the model sees at once.
    """
    num = tokenizer.get_vocab_size() if hasattr(tokenizer, "get_vocab_size") else len(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if num > rows:
        raise ValueError(
            f"tokenizer: {num} tokens, but the model's embedding has {rows} rows; use the model's own tokenizer, or "
            f"model.resize_token_embeddings({num}) before discover"
        )
    positions = getattr(model.config, "max_position_embeddings", None) or block
    if block > positions:
        raise ValueError(f"block={block}: the model has {positions} positions, expected at most that many tokens")
