"""The algorithms and their hyper-parameters, as an engineer writes them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from alignment_api.contract.base import Contract
from alignment_api.contract.fields import contract_in
from alignment_api.contract.inputs import RowFormat
from alignment_api.contract.numbers import Count, NotNegative, Positive, Samples
from alignment_api.contract.rewards import Reward, Rewards
from alignment_api.contract.roles import (
    FROM_ROWS,
    FROM_ROWS_AND_REFERENCE,
    ONLINE,
    ONLINE_WITHOUT_CRITIC,
    ROLES,
    Stage,
)

KlEstimator = Literal["k1", "k2", "k3"]
Truncated = Literal["score", "mask", "bootstrap"]
RowNumber = Literal["weight", "margin"]


class LearningRates(NamedTuple):
    """Peaks of AdamW, where the manifest names none."""

    whole: float
    """Of whole models, from 7B up."""
    adapters: float
    """With training.lora: ten times as much (Dettmers et al. 2023; Schulman et al. 2025)."""


ALIGNING = LearningRates(5e-7, 5e-6)
"""Of those that begin at a model that answers already and compare with it (Tunstall et al. 2023; Meng et al. 2024)."""
SAMPLING = LearningRates(1e-6, 1e-5)
"""Of those that learn from their own samples (Shao et al. 2024, section 4.2)."""


class Options(Contract):
    """What every algorithm has."""

    stages: ClassVar[tuple[Stage, ...]]
    """Of its jobs, in order, with every role that one of them may have."""
    rows: ClassVar[RowFormat]
    """What it learns from."""
    usual_learning_rate: ClassVar[LearningRates] = ALIGNING
    """What training.learningRate is where it is not given."""
    row_numbers: ClassVar[frozenset[RowNumber]] = frozenset({"weight"})
    """Columns with a number of each row that it reads."""

    @property
    def needs_reference(self) -> bool:
        """Whether a job with these options compares with a frozen reference."""
        return any("reference" in stage.roles for stage in self.stages)


class FromPairs(Options):
    """Algorithms that learn from pairs: a prompt, the completion that was chosen, the one that was rejected."""

    stages = FROM_ROWS
    rows = "preferences"


class Sft(Options):
    """Supervised fine-tuning: the model learns to say what demonstrations say, every token alike."""

    stages = FROM_ROWS
    rows = "demonstrations"
    usual_learning_rate = LearningRates(2e-5, 2e-4)


class Kto(Options):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024): from single completions, each desirable or not."""

    beta: Positive = 0.1
    """Strength of the pull to the reference: higher stays closer. 0.05-0.2 is usual; start at 0.1."""
    desirable_weight: Positive = 1.0
    """Weight of a desirable row's loss. Where labels are unbalanced, choose the two so that weight times rows of the
    desirable is 1 to 4/3 times that of the others (section 4.2)."""
    undesirable_weight: Positive = 1.0
    """Weight of an undesirable row's loss."""
    stages = FROM_ROWS_AND_REFERENCE
    rows = "feedback"


class Dpo(FromPairs):
    """Direct preference optimization (Rafailov et al. 2023)."""

    beta: Positive = 0.1
    """Strength of the pull to the reference: higher stays closer. 0.05-0.2 is usual; start at 0.1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference label is flipped (conservative DPO, Mitchell 2023). 0 trusts the labels."""
    robust: bool = False
    """Corrects the loss for labels that are flipped so often, so that its mean is that of true labels (Chowdhury et al.
    2024), where conservative DPO aims at a bounded margin. Reads `labelSmoothing`. The loss may be negative."""
    rpo_alpha: NotNegative = 0.0
    """Weight of the chosen completion's negative log-likelihood, nats per token, added to the loss (Pang et al. 2024):
    keeps the chosen likely where both likelihoods sink. 1 is usual; with `referenceFree` it is near CPO (Xu et al.
    2024), which sums over tokens."""
    length_normalized: bool = False
    """Log-probs count as means over a completion's tokens instead of sums, so that length is no advantage (Lambert et
    al. 2024, section 5). Margins are smaller by about the length: take a `beta` of 5 instead of 0.1."""
    reference_free: bool = False
    """The policy's own log-probs without those of a reference: none is computed, and nothing holds the policy near."""
    stages = FROM_ROWS_AND_REFERENCE

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free


class Ipo(FromPairs):
    """Identity preference optimization (Azar et al. 2024): a margin to meet instead of one that only grows."""

    beta: Positive = 0.1
    """Tau of the paper: the margin of log-ratios is drawn to 1 / (2 beta) nats, 5 at 0.1; higher stays closer to the
    reference."""
    length_normalized: bool = False
    """Log-ratios count as means over a completion's tokens instead of the paper's sums: the margin is in nats per token
    then, and a `beta` of 0.1 asks for much."""
    stages = FROM_ROWS_AND_REFERENCE


class Orpo(FromPairs):
    """Odds-ratio preference optimization (Hong et al. 2024): learns to say the chosen and to prefer it at once."""

    odds_weight: Positive = 0.1
    """Weight of the odds-ratio term beside the chosen completion's negative log-likelihood: lambda of the paper."""
    usual_learning_rate = LearningRates(5e-6, 5e-5)


class Simpo(FromPairs):
    """Simple preference optimization (Meng et al. 2024): mean log-probs with a target margin, without a reference."""

    beta: Positive = 2.0
    """Scale of the mean log-probs, per nat per token. 2.0-2.5 is usual, 10 for models that are aligned already."""
    gamma: NotNegative = 1.0
    """The scaled margin is pushed above this: half of `beta` is a good start. 0 asks for no margin."""


class RewardModel(FromPairs):
    """Pairwise reward model: a scalar head on the model, from preferences (Bradley-Terry; Ouyang et al. 2022)."""

    margin: NotNegative = 0.0
    """The chosen score is pushed above the rejected one by this much, where a row has no `margin` of its own."""
    row_numbers = frozenset({"weight", "margin"})
    center_coef: NotNegative = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023); 0.01 is usual."""
    usual_learning_rate = LearningRates(1e-5, 1e-4)


class Online(Options):
    """What PPO and GRPO share: they learn from completions that the model samples while it trains."""

    prompts_per_rollout: Count
    """Prompts sampled for one step of the job: one rollout and the updates from it."""
    max_new_tokens: Count = 512
    """Tokens of a completion at most; prompt and completion together stay within training.maxLength."""
    temperature: Positive = 1.0
    """Of sampling; logits are divided by it wherever log-probs are compared."""
    epochs_per_rollout: Count
    """Passes over one rollout, in optimizer steps of training.batchSize completions."""
    clip_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio of new to old policy counts no further than 1 -+ this (Schulman et al. 2017, eq. 7)."""
    importance_cap: Positive = 2.0
    """Bound of the weights that correct for vLLM's log-probs differing from the trainer's (Yao et al. 2025)."""
    max_update_kl: NotNegative = 0.05
    """Ends the updates from a rollout, nats per token towards the policy that sampled. 0 never ends them."""
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0
    """Completions may come from weights so many steps old; 0 is strictly on-policy."""
    truncated: Truncated = "score"
    """What a completion teaches that `maxNewTokens` or `training.maxLength` cut off. score: its score as it stands,
    less `missingEosPenalty`: right where the limit holds in use too. mask: nothing, and means and deviations of
    advantages leave it out (overlong filtering of DAPO, Yu et al. 2025, section 3.4): where many are cut, it never
    learns to end. bootstrap (ppo): in place of its score the critic's value of the state in which it was cut off
    (partial-episode bootstrapping, Pardo et al. 2018)."""
    missing_eos_penalty: NotNegative | None = None
    """Subtracted from the score of a completion that was cut off, in units of the score. Absent, it is 0, but 1 where
    `truncated` is score and a reward is a model, which has only read completions that end and is no judge of others."""
    rewards: Rewards
    """What a completion is worth; summed by weight."""

    rows = "prompts"
    usual_learning_rate = SAMPLING
    row_numbers = frozenset()
    samples_field: ClassVar[str]
    """The field that says how many completions a prompt gets."""

    @property
    def samples(self) -> int:
        """Completions of one prompt."""
        return int(getattr(self, self.samples_field))

    @property
    def completions_per_rollout(self) -> int:
        """What one step of the job samples."""
        return self.prompts_per_rollout * self.samples

    @property
    def eos_penalty(self) -> float:
        """What is subtracted from the score of a completion that was cut off."""
        if self.missing_eos_penalty is not None or self.truncated != "score":
            return self.missing_eos_penalty or 0.0
        return 1.0 if any(reward.function is None and reward.weight for reward in self.rewards) else 0.0


CriticStart = Literal["rewardModel", "model"]


class Critic(Contract):
    """The value model of PPO."""

    learning_rate: Positive = 5e-6
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 50
    """Optimizer steps of the critic before the actor's first: a random head's advantages are noise."""
    value_clip: Positive | None = None
    """A new value counts no further from the old one than this, in running deviations of the scores (in units of the
    score with `rewardScaling: none`). Absent counts it all: a bound keeps a critic from following scores that climb."""
    start_from: CriticStart | None = Field(default=None, alias="from")
    """What it starts from. rewardModel: the reward model that this job trains, else the only one it names, head
    included (Ouyang et al. 2022, appendix C.4): it has the shape of spec.model. model: spec.model with a head of zeros.
    Absent: rewardModel where there is such a one, else model."""


class Ppo(Online):
    """Proximal policy optimization (Schulman et al. 2017) with a KL penalty per token (Ziegler et al. 2019)."""

    prompts_per_rollout: Count = 128
    """Prompts sampled for one step of the job: one rollout and the updates from it."""
    completions_per_prompt: Samples = 1
    """Completions of each prompt."""
    epochs_per_rollout: Count = 4
    """Passes over one rollout, in optimizer steps of training.batchSize completions."""
    init_kl_coef: NotNegative = 0.2
    """Weight of the KL penalty at first; raise it by half where KL climbs above 0.1 without a gain in reward."""
    target_kl: NotNegative = 0.1
    """What the adaptive controller aims at, nats per token towards the reference. 0 leaves the weight as it is."""
    kl_horizon: Count = 10_000
    """Completions over which the controller corrects an error of 1 (Ziegler et al. 2019, section 2.2)."""
    kl_estimator: KlEstimator = "k1"
    """Of the penalty, from d = log pi - log ref: k1 d, k2 d^2/2, k3 e^-d + d - 1 (Schulman 2020)."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of later rewards."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Bias against variance of the advantages (Schulman et al. 2016, eq. 16)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss for negative advantages (Ye et al. 2020, eq. 5); 3 is usual. Absent: none."""
    reward_scaling: Literal["running", "none"] = "running"
    """Of all that the critic learns, scores and KL penalties alike: divided by the running standard deviation of the
    job's scores (Engstrom et al. 2020, section 3). The policy sees no difference, and `initKlCoef` keeps its meaning,
    units of the score a nat: advantages are whitened whatever their scale."""
    critic: Critic = Critic()
    """The value model."""
    samples_field = "completions_per_prompt"
    stages = ONLINE

    @property
    def critic_reward(self) -> Reward | None:
        """The reward model that the critic starts from, as far as the manifest says; None: spec.model."""
        if self.critic.start_from == "model":
            return None
        models = [reward for reward in self.rewards if reward.function is None and reward.weight]
        trained = [reward for reward in models if reward.train is not None]
        return trained[0] if trained else models[0] if len(models) == 1 else None


class Grpo(Online):
    """Group relative policy optimization (Shao et al. 2024): advantages within a prompt's group, no critic."""

    group_size: Annotated[Samples, Field(ge=2)] = 8
    """Completions of each prompt: they are compared with each other, so two at least."""
    prompts_per_rollout: Count = 32
    """Prompts sampled for one step of the job: one rollout and the updates from it."""
    epochs_per_rollout: Count = 1
    """Passes over one rollout, in optimizer steps of training.batchSize completions."""
    kl_coef: NotNegative = 0.04
    """Weight of the KL term in the loss (estimator k3). 0 needs no reference."""
    truncated: Literal["score", "mask"] = "score"
    """What a completion teaches that `maxNewTokens` or `training.maxLength` cut off. score: its score as it stands,
    less `missingEosPenalty`. mask: nothing, and mean and deviation of its group leave it out (overlong filtering of
    DAPO, Yu et al. 2025, section 3.4): where many are cut, it never learns to end."""
    samples_field = "group_size"
    stages = ONLINE_WITHOUT_CRITIC

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef != 0


class Algorithm(Contract):
    """Exactly one algorithm."""

    sft: Sft | None = None
    """Supervised fine-tuning: from demonstrations, which the preference algorithms start from."""
    kto: Kto | None = None
    """Kahneman-Tversky optimization: from single completions that are each desirable or not."""
    dpo: Dpo | None = None
    """Direct preference optimization: from pairs, without a reward model."""
    ipo: Ipo | None = None
    """Identity preference optimization: from pairs, with a margin that does not grow without end."""
    orpo: Orpo | None = None
    """Odds-ratio preference optimization: from pairs, fine-tuning included, without a reference."""
    simpo: Simpo | None = None
    """Simple preference optimization: from pairs, by mean log-probs, without a reference."""
    reward: RewardModel | None = None
    """A reward model from pairs, for PPO and GRPO."""
    ppo: Ppo | None = None
    """Proximal policy optimization: from prompts and rewards, with a critic."""
    grpo: Grpo | None = None
    """Group relative policy optimization: from prompts and rewards that can be checked."""

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are set; one, or a rule is broken."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def name(self) -> str:
        """The key that is set: `dpo`."""
        return self.given[0]

    @property
    def options(self) -> Options:
        """What stands below that key."""
        options: Options = getattr(self, self.name)
        return options

    @property
    def online(self) -> Ppo | Grpo | None:
        """The options of an algorithm that samples while it trains; None of the others."""
        return self.ppo or self.grpo

    @property
    def sampling_temperature(self) -> float:
        """What logits are divided by: that of sampling, 1 where nothing is sampled."""
        return self.online.temperature if self.online is not None else 1.0

    @property
    def rewards(self) -> Rewards:
        """What completions are worth; none where nothing is sampled."""
        return self.online.rewards if self.online is not None else ()


def _options_of(name: str) -> type[Options]:
    model = contract_in(Algorithm.model_fields[name].annotation)
    assert model is not None
    assert issubclass(model, Options)
    return model


OPTIONS = {name: _options_of(name) for name in Algorithm.model_fields}
"""Algorithm -> the type of its options."""
STAGES = {name: options.stages for name, options in OPTIONS.items()}
"""Algorithm -> its stages, in order."""


def roles_of(algorithm: str, trains_reward: bool) -> tuple[str, ...]:
    """Every role that a job of the algorithm may give, in the order of ROLES. Stage `reward` has roles of its own."""
    stages = [stage for stage in STAGES[algorithm] if stage.name != "reward" or trains_reward]
    return tuple(role for role in ROLES if any(role in stage.roles for stage in stages))
