"""The printed vectors of algorithms.md, asked of both the oracle and cox-ops.

They guard the oracle itself: a reference that misread a formula fails here.
"""

import math

from core import FREE, vector
from model_cases import BASE

NEG = -math.inf

# §1, §6 batch
OLD = [[-1, -2, -.5, -1.5], [-.7, -1.2, "nan", "nan"]]
NEW = [[-.9, -2.3, -.1, -1.5], [-1, -.8, "nan", "nan"]]
ADV = [[.5, -1, 2, -.3], [-.8, 1.5, "nan", "nan"]]
MASK = [[1, 1, 1, 1], [1, 1, 0, 0]]
BATCH = {"logprob": NEW, "old_logprob": OLD, "advantages": ADV, "mask": MASK}
SEQ = dict(BATCH, advantages=[[1] * 4, [-.5] * 4])
BEH = [[-1.2, -1.9, -.6, -2.3], [-.7, -1, "nan", "nan"]]


def policy(args, loss, grad=None, **metrics):
    args = dict({"kind": "ppo"}, **args)
    want = {"loss": loss}
    if grad is not None:
        want["grad"] = grad
    if metrics:
        want["metrics"] = metrics
    vector("policy_loss", args, want)


policy(BATCH, -.502098, [[-.092098, 0, 0, .05], [0, 0, 0, 0]],
       clipfrac=.666667, approxkl=.0425, ratio=1.095076)
policy(dict(BATCH, eps_hi=.28), -.548764)
for agg, loss in (("token_mean", -.496679), ("seq_mean_token_mean", -.229271),
                  ("seq_mean_token_sum", -1.490038), ("const", -.372510)):
    extra = {"t_max": 4} if agg == "const" else {}
    policy(dict(SEQ, eps_hi=.28, agg=agg, **extra), loss)
policy(dict(SEQ, kind="gspo", eps_lo=3e-4, eps_hi=4e-4), -.237382)
policy(dict(SEQ, kind="gspo"), -.262818,
       [[-.131409] * 4, [.131409, .131409, 0, 0]])
policy(dict(SEQ, kind="cispo", eps_hi=.28), .574021,
       [[-.184195, -.123470, -.213333, -.166667], [.061735, .106667, 0, 0]])
for a, u, loss, grad, plain, plain_grad in (
        (-1, 5, 3, 0, 5, 5), (-1, 2, 2, 2, 2, 2), (1, 5, -1.2, 0, -1.2, 0),
        (-1, .5, .8, 0, .8, 0)):
    one = {"logprob": [[math.log(u) - 1]], "old_logprob": [[-1]],
           "advantages": [[a]]}
    policy(dict(one, dual_clip=3), loss, [[grad]])
    policy(one, plain, [[plain_grad]])
OFF = dict(BATCH, behaviour_logprob=BEH)
policy(dict(OFF, is_mode="token_truncate", is_hi=2), -.472864, ess=.868766,
       w_max=2.225541)
policy(dict(OFF, is_mode="token_mask", is_lo=.5, is_hi=2), -.572864)
policy(dict(OFF, is_mode="seq_truncate", is_hi=3), -.997596)
policy(dict(BATCH, old_logprob=BEH), -.448723)
vector("prox_interpolate",
       {"behaviour_logprob": [[-1.2, -1.9, -.6, -2.3], [-.7, -1]][:1],
        "logprob": [NEW[0]], "v_beh": [[0] * 4], "v_prox": 1, "v_theta": 2},
       {"prox": [[-1.05, -2.1, -.35, -1.9]]})
vector("prox_interpolate",
       {"behaviour_logprob": [[-.7, -1]], "logprob": [[-1, -.8]],
        "v_beh": [[0, 0]], "v_prox": 1, "v_theta": 2},
       {"prox": [[-.85, -.9]]})

# §4
R = {"scores": [[1.2, .3, -.5, .1]]}
vector("rm_loss", dict(R, ranks=[[1, 2, 4, 3]]),
       {"loss": .367167, "pairs": 6,
        "grad": [[-.115543, -.078524, .136472, .057594]]})
vector("rm_loss", dict(R, ranks=[[1, 2, 3, 3]]), {"loss": .353103})
vector("rm_loss", dict(R, kind="best_of", best=[0]), {"loss": .653431})
for w, l, loss in ((0, 1, .341154), (0, 2, .167786), (0, 3, .287335),
                   (1, 2, .371101), (1, 3, .598139), (3, 2, .437488)):
    s = R["scores"][0]
    vector("rm_loss", {"scores": [[s[w], s[l]]], "ranks": [[1, 2]]},
           {"loss": loss})
DEMO = [.8, 1.2, -.4, .4]
vector("reward_normalizer", {"scores": DEMO, "mode": "bias"},
       {"gain": 1.0, "bias": -.5})
vector("reward_normalizer", {"scores": DEMO, "mode": "gain"},
       {"gain": 1.463850, "bias": -.731925})

# §5
KL = {"logprob": [[-1, -2, -.5, -1.5]], "ref_logprob": [[-1.2, -1.9, -.9,
                                                         -1.5]]}
vector("shape_rewards", dict(KL, beta=.05, scores=[.8]),
       {"rewards": [[-.01, .005, -.02, .8]], "kl_sum": [.5]})
PLACE = dict(KL, beta=.05, scores=[.8], mask=[[1, 1, 1, 0]])
vector("shape_rewards", PLACE, {"rewards": [[-.01, .005, .78, 0]]})
vector("shape_rewards", dict(PLACE, position="after_last"),
       {"rewards": [[-.01, .005, -.02, .8]], "value_mask": [[1, 1, 1, 1]]})
vector("gae", {"rewards": [[-.01, .005, .78]], "values": [[.5, .6, .4]]},
       {"advantages": [[.2477, .166, .38]]})
vector("gae", {"rewards": [[-.01, .005, -.02, .8]],
               "values": [[.5, .6, .4, .9]]},
       {"advantages": [[.252213, .17075, .385, FREE]],
        "returns": [[FREE, FREE, FREE, .8]]})
for kind, kl, avg in (("k1", [.2, -.1, .4, 0.], .125),
                      ("k2", [.02, .005, .08, 0.], .02625),
                      ("k3", [.018731, .005171, .070320, 0.], .023555)):
    vector("kl_estimate", dict(KL, kind=kind), {"kl": [kl], "mean": avg})
for kl, beta in ((8, .151536), (7, .151280), (5.4, .149232), (1, .148464)):
    vector("kl_controller", {"kind": "adaptive", "beta": .15, "target": 6,
                             "horizon": 10000, "stream": [[kl, 512]]},
           {"beta": [beta]})
GAE = {"rewards": [[-.02, .01, -.03, 0, 1.5]], "values": [[.5, .6, .4, .8,
                                                           1]]}
vector("gae", GAE,
       {"advantages": [[.812153, .770688, 1.01125, .675, .5]],
        "returns": [[1.312153, 1.370687, 1.41125, 1.475, 1.5]]})
vector("gae", {**GAE, "gamma": .99, "lambda": .9},
       {"advantages": [[.638051, .633053, .928230, .6355, .5]]})
vector("gae", dict(GAE, mask=[[1, 1, 0, 0, 1]]),
       {"advantages": [[.92075, .885, 0, 0, .5]]})
A = [[.8121528125, .77068750, 1.01125, .675, .5]]
vector("whiten", {"x": A}, {"mean": .753818, "var": .028119, "out": [
    [.347880, .100600, 1.535192, -.470031, -1.513642]]})
vector("whiten", {"x": A, "ddof": 1}, {"var": .035149, "out": [
    [.311154, .089980, 1.373118, -.420409, -1.353843]]})
vector("whiten", {"x": A, "shift_mean": False}, {"out": [
    [1.101698, .854418, 2.289011, .283787, -.759824]]})
vector("whiten", {"x": [[1, 2, 3], [10, 20, "nan"]],
                  "mask": [[1, 1, 1], [1, 1, 0]], "world": 2,
                  "rank_of_row": [0, 1]},
       {"mean": 7.2, "var": 50.96, "out": [[-.868514, -.728431, -.588348],
                                           [.392232, 1.793062, 0]]})
FOUR = {"mask": [[1]] * 4, "scores": [1, 0, 0, .5], "group": [0] * 4}
for kind, eps, adv in (
        ("rloo", None, (.833333, -.5, -.5, .166667)),
        ("grpo", 1e-6, (1.305580, -.783348, -.783348, .261116)),
        ("grpo", 1e-4, (1.305310, -.783186, -.783186, .261062)),
        ("dr_grpo", None, (.625, -.375, -.375, .125))):
    extra = {} if eps is None else {"eps": eps}
    vector("group_advantages", dict(FOUR, kind=kind, **extra),
           {"advantages": [[x] for x in adv]})
vector("group_advantages",
       {"kind": "reinforce_pp", "mask": MASK,
        "token_rewards": [[-.01, .005, -.02, .8], [-.015, -.2, "nan", 9]]},
       {"advantages": [[.685613, .706982, .696297, .739037],
                       [-1.429992, -1.397937, 0, 0]]})
vector("group_advantages",
       {"kind": "reinforce_pp_baseline", "group": ["a", "a", "b", "b"],
        "scores": [1, 0, .5, .3],
        "mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]},
       {"advantages": [[1.133893] * 3, [-1.385870, -1.385870, 0],
                       [.125988, 0, 0], [-.377964, -.377964, 0]]})

# §6
vector("overlong_penalty", {"lengths": [12, 15, 20, 22], "l_max": 20,
                            "l_cache": 8}, {"penalty": [0., -.375, -1., -1.]})
RETURNS = [[1.312153125, 1.3706875, 1.41125, 1.475, 1.5]]
VALUE = {"old_values": [[.5, .6, .4, .8, 1]], "values": [[.55, 1, .1, .79,
                                                          1.5]],
         "returns": RETURNS}
vector("value_loss", VALUE, {"loss": .318516, "clipfrac": .4})
vector("value_loss", dict(VALUE, clip=None), {"loss": .290689})

# §7
for v, acc, run, cap in ((0, 0, 0, 24), (3, 20, 8, 20), (3, 32, 8, 8)):
    vector("staleness_capacity",
           {"eta_max": 2, "batch": 8, "version": v, "accepted": acc,
            "running": run}, {"capacity": cap})

# §8
DPO = {"kind": "dpo",
       "chosen": {"logprob": [[-12]], "ref_logprob": [[-13]]},
       "rejected": {"logprob": [[-15]], "ref_logprob": [[-14.5]]}}
vector("preference_loss", DPO,
       {"loss": .620957, "grad_chosen": [[-.046257]],
        "reward_chosen": [.1], "reward_rejected": [-.05], "accuracy": 1.})
vector("preference_loss", dict(DPO, label_smoothing=.1), {"loss": .635957})
vector("preference_loss", dict(DPO, kind="ipo", length_norm=False),
       {"loss": 12.25})
vector("preference_loss",
       {"kind": "ipo",
        "chosen": {"logprob": [[-2] * 6], "ref_logprob": [[-13 / 6] * 6]},
        "rejected": {"logprob": [[-3] * 5], "ref_logprob": [[-2.9] * 5]}},
       {"loss": 22.404444})
KTO = {"mismatch_logprob": [-1], "mismatch_ref_logprob": [-1.4]}
vector("kto_loss", dict(KTO, logprob=[-12], ref_logprob=[-13],
                        desirable=[True]), {"loss": .485004, "z0": .4})
vector("kto_loss", dict(KTO, logprob=[-15], ref_logprob=[-14.5],
                        desirable=[False]), {"loss": .477515})

# §10
Z = {"logits": [2, 1, .5, -1, -1.5]}
SOFT = [-.320250, -1.748821, -2.463107, -4.605964, -5.320250]
CUT = [-.305254, -1.733826, -2.448112, NEG, NEG]
vector("process_logits", Z, {"logprob": [-.513419, -1.513419, -2.013419,
                                         -3.513419, -4.013419]})
vector("process_logits", dict(Z, temperature=.7), {"logprob": SOFT})
vector("logprob", {"logits": [[Z["logits"]]], "ids": [[2]],
                   "temperature": .7},
       {"logprob": [[SOFT[2]]], "entropy": [[.818579]]})
for extra in ({"top_k": 3}, {"top_p": .9}, {"min_p": .1}):
    vector("process_logits", dict(Z, temperature=.7, **extra),
           {"logprob": CUT, "keep": [True] * 3 + [False] * 2})
vector("process_logits",
       dict(Z, temperature=.7, repetition_penalty=1.2, context=[0, 3],
            top_k=4, top_p=.95, min_p=.05),
       {"logprob": [-.454063, -1.406444, -2.120729, NEG, NEG]})
vector("process_logits", {"logits": [1, 1, 0, 1], "top_k": 2},
       {"keep": [True, True, False, True]})
vector("sample", dict(Z, temperature=.7, uniforms=[.1, .75, .9, .99, .999]),
       {"tokens": [0, 1, 2, 3, 4]})
vector("position_ids", {"mask": [[0, 0, 1, 1, 1]]},
       {"ids": [[FREE, FREE, 0, 1, 2]]})

# §11
ADAM = {"p": [0], "grads": [[1e-4]], "lr": 1e-5, "betas": [.9, .999],
        "eps": 1e-5}
vector("optimizer", dict(ADAM, kind="adamw"), {"p": [[-9.090909e-6]]})
vector("optimizer", dict(ADAM, kind="tf_adam"), {"p": [[-2.402531e-6]]})
vector("optimizer", {"kind": "adamw", "p": [1, 1], "grads": [[.5, -.1]],
                     "lr": .01, "betas": [.9, .95], "eps": 1e-8,
                     "weight_decay": .1},
       {"p": [[FREE, FREE]]})
vector("optimizer", {"kind": "adamw", "p": [1], "grads": [[.5], [-.1]],
                     "lr": .01, "betas": [.9, .95], "eps": 1e-8,
                     "weight_decay": .1},
       {"p": [[.98900000], [.98284036]]})
vector("grad_clip", {"grads": [[3, 4], [12]], "max_norm": 1},
       {"norm": 13, "grads": [[.230769, .307692], [.923077]]})
vector("lr_schedule", {"kind": "cosine", "peak": 1, "total": 4, "floor": .1,
                       "steps": [0, 1, 2, 3, 4]},
       {"lr": [1, .868198, .55, .231802, .1]})
vector("lr_schedule", {"kind": "constant", "peak": 1, "total": 100,
                       "warmup": 10, "steps": [0, 1, 5, 10]},
       {"lr": [.1, .19, .55, 1]})
vector("ema", {"theta0": [1], "thetas": [[2]] * 3, "decay": .992},
       {"shadow": [[1.008], [1.015936], [1.023808512]]})

# §12: last-position logits 0-4 and the sum of log-probs of ids 1..4.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
PINNED = (
    ("gpt2", {}, (-.358913, .441928, 1.044402, 1.178077, .782950),
     -11.272964),
    ("llama", {}, (.955947, .414580, -.312879, -.899896, -1.082979),
     -9.324953),
    ("llama", {"rope_scaling": LLAMA3},
     (1.038552, .525618, -.223250, -.871908, -1.129194), -9.452188),
    ("qwen2", {}, (-.914835, -.545880, .068103, .651517, .942485),
     -10.783369),
    ("qwen3", {}, (-.789235, -.767755, -.401654, .144736, .626159),
     -10.162987),
)
MODELS = []
for family, extra, last, total in PINNED:
    for pad in (0, 2):
        row = [0] * pad + [3, 1, 4, 1, 5]
        MODELS.append((
            {"model": {"config": dict(BASE[family], **extra)},
             "tokens": [row],
             "attention_mask": [[0] * pad + [1] * 5]}, pad, last, total))
