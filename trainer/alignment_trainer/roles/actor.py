"""The role `actor`: the trainee of PPO and GRPO. It claims a fencing term, begins with its critic, trains, exports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_api.contract.context import Outcome
from alignment_trainer.algorithms import make_online
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.attempt import Start, claim_attempt, find_start, make_checkpoints
from alignment_trainer.checkpoint.export import DTYPES, export_model
from alignment_trainer.checkpoint.output import output_at
from alignment_trainer.checkpoint.ownership import check_folders
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.experience import EXPERIENCE_FILE, Experience, Samples, load_experience, load_samples
from alignment_trainer.data.prepared import PreparedPrompts, open_prompts
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.storage import storage_of
from alignment_trainer.experience.clients import OnlineClients, PinnedPolicy, make_clients, make_functions
from alignment_trainer.experience.critic_client import Critic, CriticAddress, LocalCritic, NoCritic, RemoteCritic
from alignment_trainer.experience.critic_start import critic_start
from alignment_trainer.experience.record import keep_rollouts
from alignment_trainer.loop.build import Origin, Trainee, load_trainee, loop_options
from alignment_trainer.loop.offline import Interrupted
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.online_evaluation import heldout_evaluator
from alignment_trainer.loop.online_parts import OnlineServices, Progress, Prompts, Trainees, UpdateOptions
from alignment_trainer.loop.reporting import Reporter, checkpoint_status
from alignment_trainer.loop.train import train_online
from alignment_trainer.model.inspect import load_tokenizer
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards import FunctionScorer
from alignment_trainer.roles.critic import make_value_trainer
from alignment_trainer.weights.publisher import WeightPublisher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorStart:
    """Where an attempt starts.

    resumed: this job's own checkpoint that it goes on from. unfinished: an experience whose updates a former attempt
    had begun.
    """

    prepared: PreparedPrompts
    model: Path
    resumed: Start | None
    policy: Trainee
    critic: Critic
    critic_steps: int
    unfinished: Experience | None


def run(instance: Instance) -> Outcome:
    """One attempt; the same on every rank of the gang."""
    device = distributed.local_device(instance.context.gpus)
    with distributed.process_group(device):
        instance.board.update(state="reading prepared prompts")
        check_folders(instance.context)
        publisher = WeightPublisher(instance)
        with publisher, make_functions(instance) as functions:
            instance.board.update(ready=True)  # servers may register from here on
            return _train(instance, device, publisher, functions)


def _train(instance: Instance, device: torch.device, publisher: WeightPublisher, functions: FunctionScorer) -> Outcome:
    claim = claim_attempt(instance)
    start = _begin(instance, device, find_start(instance, claim))
    tokenizer = load_tokenizer(instance.spec.model.source, start.model)
    clients = make_clients(
        instance, publisher, functions, PinnedPolicy(start.prepared.manifest.model.fingerprint, start.model, tokenizer)
    )
    publish = _publishing(instance, start.policy, publisher)
    with closing(start.critic), closing(Reporter(instance)) as reporter:
        loop = _make_run(instance, start, clients, reporter, publish, make_checkpoints(instance, claim))
        publish(loop.position.version)
        if distributed.rank() == 0:
            clients.wait_for_servers()
        instance.board.update(state="training")
        try:
            train_online(loop)
            instance.board.update(state="exporting the model")
            precision = instance.spec.training.precision
            check_folders(instance.context)  # days may have passed
            export_model(start.policy.model, start.policy.engine, output_at(instance.output), precision)
        except Interrupted:
            return _outcome("interrupted", loop)
        return _outcome("succeeded", loop)


def _begin(instance: Instance, device: torch.device, start: Start | None) -> ActorStart:
    """Actor and critic, both from the same checkpoint."""
    spec = instance.spec
    prepared = open_prompts(storage_of(instance))
    model = resolve_model(spec.model, instance.context.sources, prepared.manifest.model.revision).path
    instance.board.update(state="loading the model")
    policy = load_trainee(spec, Origin(model), start, device)
    critic = _make_critic(instance, model, device)
    instance.board.update(state="waiting for the critic" if isinstance(critic, RemoteCritic) else "starting")
    resumed = start if start is not None and start.resumes else None
    if resumed is None:
        first_coef = make_online(spec.algorithm).first_kl_coef
        policy = replace(policy, position=replace(policy.position, kl_coef=first_coef))
    return ActorStart(
        prepared=prepared,
        model=model,
        resumed=resumed,
        policy=policy,
        critic=critic,
        critic_steps=critic.begin(start),
        unfinished=_unfinished(resumed) if resumed is not None else None,
    )


def _unfinished(resumed: Start) -> Experience | None:
    return load_experience(resumed.folder) if (resumed.folder / EXPERIENCE_FILE).is_file() else None


def _make_critic(instance: Instance, model: Path, device: torch.device) -> Critic:
    if instance.spec.algorithm.ppo is None:
        return NoCritic()
    urls = instance.context.peers.get("critic", ())
    if not urls:
        return LocalCritic(lambda at: make_value_trainer(instance.spec, critic_start(instance, model), at, device))
    return RemoteCritic(CriticAddress(urls[0], instance.token, instance.context.life))


def _publishing(instance: Instance, policy: Trainee, publisher: WeightPublisher) -> Callable[[int], None]:
    """Hands the policy's weights to the rollout servers, in the dtype of its precision; collective."""
    dtype = DTYPES[instance.spec.training.precision]

    def publish(version: int) -> None:
        weights = ((name, tensor.to(dtype)) for name, tensor in policy.engine.full_weights() if tensor is not None)
        if distributed.rank() == 0:
            publisher.publish(version, weights)
        else:
            list(weights)  # takes part in gathering, and is given none

    return publish


def _make_run(
    instance: Instance,
    start: ActorStart,
    clients: OnlineClients,
    reporter: Reporter,
    publish: Callable[[int], None],
    checkpoints: Checkpoints,
) -> OnlineRun:
    spec, training = instance.spec, instance.spec.training
    algorithm = make_online(spec.algorithm)
    sampler = Sampler(len(start.prepared.train), clients.options.prompts_per_rollout, training.seed)
    total = sampler.total_steps(training.epochs, training.max_steps)
    prompts = Prompts(start.prepared.train, sampler)
    return OnlineRun(
        trainees=Trainees(start.policy.engine, start.critic, algorithm),
        prompts=prompts,
        services=OnlineServices(
            clients=clients,
            checkpoints=checkpoints,
            observer=reporter,
            timing=instance.metrics,
            keep=keep_rollouts(storage_of(instance), instance.context.life, clients.reward_sum.text),
            publish=publish,
            evaluate=heldout_evaluator(start.prepared.evaluation, clients, reporter),
            stop=instance.stop,
        ),
        options=loop_options(spec, total),
        update_options=_update_options(instance, clients.options, total),
        progress=_progress(start, prompts),
    )


def _progress(start: ActorStart, prompts: Prompts) -> Progress:
    """Where the run goes on, or begins. What another job has sampled stays that job's."""
    position, samples = start.policy.position, Samples()
    if start.resumed is not None and start.unfinished is None:
        samples = load_samples(prompts.of_step(position.step), start.resumed.checkpoint.place)
    return Progress(position, samples, start.unfinished, start.critic_steps)


def _update_options(instance: Instance, online: Ppo | Grpo, total_steps: int) -> UpdateOptions:
    training, ppo = instance.spec.training, instance.spec.algorithm.ppo
    rate, warmup = (ppo.critic.learning_rate, ppo.critic.warmup_steps) if ppo is not None else (0.0, 0)
    return UpdateOptions(
        batch_size=training.batch_size,
        epochs=online.epochs_per_rollout,
        max_update_kl=online.max_update_kl,
        critic_rate=WarmupCosine(rate, total_steps, training.warmup_fraction),
        warmup=warmup,
        seed=training.seed,
        attempt=instance.context.life,
    )


def _outcome(result: Literal["succeeded", "interrupted"], loop: OnlineRun) -> Outcome:
    newest = loop.services.checkpoints.newest
    return Outcome(result=result, step=loop.position.step, checkpoint=checkpoint_status(newest) if newest else None)
