"""The loops."""

from alignment_trainer.loop.offline import Interrupted, Run
from alignment_trainer.loop.online import OnlineRun


def train(run: Run) -> None:
    """Trains to the last step. Raises Interrupted, with everything saved, where the run was asked to go."""
    try:
        for batch in run.batches():
            for micro in batch.micros:
                run.engine.backward(run.loss(micro))
            run.finish(batch)
            run.after_step()
        run.settle()
    except Interrupted:
        run.save()
        run.settle()
        raise
    finally:
        run.close()


def train_online(run: OnlineRun) -> None:
    """The same for algorithms that learn from what they sample: rollout, score, learn, update, deliver."""
    try:
        for prompts in run.batches():
            experience = run.take_unfinished() or run.learn_from(run.score(run.rollout(prompts)))
            for minibatch in run.minibatches(experience):
                run.update(minibatch)
            run.deliver()
            run.after_step()
        run.settle()
    except Interrupted:
        run.save()
        run.settle()
        raise
    finally:
        run.close()
