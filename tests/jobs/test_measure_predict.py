"""The measurement of predictions: both sides predict the same images."""

from jobs.benchmark import predict
from jobs.benchmark.settings import Settings


def test_predictions_are_compared_with_a_bare_forward_loop() -> None:
    settings = Settings(
        what="predict", model_name="simple_cnn", image_size=16, num_images=48, batch_size=16, rounds=1, device="cpu"
    )
    (row,) = predict.measure(settings)
    assert row.what == "simple_cnn, 48 images of 16 pixels, on cpu"
    assert row.other_name == "bare forward loop"
    assert row.ratio
    assert row.ratio == row.ours / row.other  # type: ignore[operator]
