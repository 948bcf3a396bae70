"""Score models on test sets."""

from liif_fast.evaluation.config import load_test_config
from liif_fast.evaluation.testset import (
    PUBLISHED,
    PUBLISHED_SCALES,
    at_eval_type,
    bicubic,
    evaluate,
    markdown,
    of_model,
    summarise,
    to_json,
)
