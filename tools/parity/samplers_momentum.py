"""samplers_momentum.safetensors and .json: PLMS with heavy-ball momentum and its generalisation (Wizadwongsa et al.
2023, arXiv 2307.11118, algorithms 1 and 2), written from the paper, on the levels of diffusers' Euler scheduler.

The momentum begins as the first noise prediction. In x / alpha = x0 + sigma * noise a step adds
(sigma' - sigma) * direction. The model is that of samplers.py.
"""
import torch
from diffusers import EulerDiscreteScheduler

import common
from samplers import SEED, SHAPE, model

BASE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def weights(order, b):
    """Of the momentum's history, newest first: Adams and Bashforth's where b is 1 (paper, table 5 divided by b)."""
    table = {1: (b,),
             2: ((2 + b) / 2, -(2 - b) / 2),
             3: ((18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12),
             4: ((46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24)}
    return [w / b for w in table[order]]


class HeavyBall:
    """The momentum of what Adams and Bashforth's formula makes of the noise predictions."""

    def __init__(self, order, beta):
        self.order, self.beta, self.velocity, self.history = order, beta, None, []

    def mix(self, b):
        return sum(w * v for w, v in zip(weights(len(self.history), b), self.history))

    def remember(self, value):
        self.history = [value, *self.history][:self.order]

    def direction(self, noise):
        self.remember(noise)
        before = noise if self.velocity is None else self.velocity
        self.velocity = (1 - self.beta) * before + self.beta * self.mix(1.0)
        return self.velocity


class Generalised(HeavyBall):
    """The formula of higher order for the momentum of the noise predictions."""

    def direction(self, noise):
        before = noise if self.velocity is None else self.velocity
        self.velocity = (1 - self.beta) * before + self.beta * noise
        self.remember(self.velocity)
        return self.mix(self.beta)


def noise_of(prediction, out, x, sigma):
    seen = x / (sigma**2 + 1) ** 0.5
    alpha, s = 1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
    return {"epsilon": out, "v_prediction": alpha * out + s * seen, "sample": (seen - alpha * out) / s}[prediction]


def run(sampler, order, beta, config, steps):
    scheduler = EulerDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    method = {"hb": HeavyBall, "ghvb": Generalised}[sampler](order, beta)
    x = torch.randn(SHAPE, generator=common.generator(SEED)) * scheduler.init_noise_sigma
    rows = []
    for i, t in enumerate(scheduler.timesteps):
        sigma, after = float(scheduler.sigmas[i]), float(scheduler.sigmas[i + 1])
        out = model(x / (sigma**2 + 1) ** 0.5, t)
        x = x + (after - sigma) * method.direction(noise_of(config["prediction_type"], out, x, sigma))
        assert torch.isfinite(x).all()
        rows.append(x)
    return float(scheduler.init_noise_sigma), {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(rows)}


def plan():
    """(sampler, order, beta, config, steps)"""
    for sampler in ("hb", "ghvb"):
        for order in (1, 2, 3):
            for beta in (0.3, 0.8, 1.0):
                yield sampler, order, beta, {**BASE, "prediction_type": "epsilon"}, 12
        for prediction in ("v_prediction", "sample"):
            yield sampler, 2, 0.8, {**BASE, "prediction_type": prediction}, 7
        for steps in (1, 2, 30):
            yield sampler, 2, 0.8, {**BASE, "prediction_type": "epsilon", "timestep_spacing": "trailing"}, steps
        yield sampler, 2, 0.8, {**BASE, "prediction_type": "epsilon", "use_karras_sigmas": True}, 10
        yield sampler, 2, 0.8, {**BASE, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
                                "rescale_betas_zero_snr": True}, 10


def main():
    tensors, cases = {}, []
    for i, (sampler, order, beta, config, steps) in enumerate(plan()):
        name = f"{sampler}{i}"
        sigma, found = run(sampler, order, beta, config, steps)
        tensors.update({f"{name}_{k}": v for k, v in found.items()})
        cases.append({"name": name, "sampler": sampler, "order": order, "beta": beta, "config": config,
                      "steps": steps, "evaluations": len(found["timesteps"]), "init_noise_sigma": sigma})
    common.save_tensors(common.folder() / "samplers_momentum.safetensors", tensors)
    common.save_json(common.folder() / "samplers_momentum.json", {"cases": cases})
    print(f"samplers_momentum: {len(cases)} cases")


if __name__ == "__main__":
    common.check_versions()
    main()
