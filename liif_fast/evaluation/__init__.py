"""Evaluation on test sets: their configuration, and the scores of a model."""

from liif_fast.evaluation.config import EvalConfig, load_test_config
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
