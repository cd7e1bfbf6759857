"""The loop."""

from alignment_trainer.run import Interrupted, Run


def train(run: Run) -> None:
    """Trains to the last step. Raises Interrupted, with everything saved, where the run was asked to go."""
    try:
        for batch in run.batches():
            for micro in batch.micros:
                run.engine.backward(run.loss(micro))
            run.finish(batch)
            run.look_after()
    except Interrupted:
        run.save()
        raise
