"""DPM-Solver++(3M) SDE as k-diffusion has it, in the clothes of diffusers' scheduler.

diffusers has the same solver, but its term of the third order has another sign and does not vanish with the step; and its
step of the second order takes the other of the two forms. `check` holds the class against the loop itself.
"""
import torch
from diffusers import DPMSolverMultistepScheduler


class DPMPP3MSDE(DPMSolverMultistepScheduler):
    def __init__(self, **config):
        super().__init__(**config)
        self.register_to_config(solver_type="heun", lower_order_final=False)

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, sample=None, noise=None, **kwargs):
        i = self.step_index
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[i + 1])
        _, sigma_s = self._sigma_to_alpha_sigma_t(self.sigmas[i])
        lam = [-torch.log(s) for s in self.sigmas[i - 2:i + 2]]
        h, r0, r1 = lam[3] - lam[2], (lam[2] - lam[1]) / (lam[3] - lam[2]), (lam[1] - lam[0]) / (lam[3] - lam[2])
        m0, m1, m2 = model_output_list[-1], model_output_list[-2], model_output_list[-3]
        d1_0, d1_1 = (m0 - m1) / r0, (m1 - m2) / r1
        d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
        u = 2 * h
        phi_2 = torch.expm1(-u) / u + 1
        phi_3 = phi_2 / u - .5
        x = sigma / sigma_s * torch.exp(-h) * sample - alpha * torch.expm1(-u) * m0 + alpha * (phi_2 * d1 - phi_3 * d2)
        return x + sigma * torch.sqrt(-torch.expm1(-u)) * noise


def class_name(cls):
    """As a model's scheduler_config.json says it."""
    return "DPMSolverMultistepScheduler" if cls is DPMPP3MSDE else cls.__name__


def k_diffusion(denoise, x, sigmas, draw):
    """sample_dpmpp_3m_sde with eta 1 in Karras' variables; denoise(x, i) predicts the picture, draw() is the noise."""
    before, steps = [], []
    for i in range(len(sigmas) - 1):
        m = denoise(x, i)
        if sigmas[i + 1] == 0:
            return m
        h = torch.log(sigmas[i] / sigmas[i + 1])
        u = 2 * h
        phi_2 = torch.expm1(-u) / u + 1
        x = torch.exp(-u) * x - torch.expm1(-u) * m
        if len(before) > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            a, b = (m - before[-1]) / r0, (before[-1] - before[-2]) / r1
            x = x + phi_2 * (a + (a - b) * r0 / (r0 + r1)) - (phi_2 / u - .5) * (a - b) / (r0 + r1)
        elif before:
            x = x + phi_2 * (m - before[-1]) / (steps[-1] / h)
        x = x + draw() * sigmas[i + 1] * torch.sqrt(-torch.expm1(-u))
        before.append(m)
        steps.append(h)
    return x


def check(model, steps=20):
    """The class and the loop on the same sigmas and noise; model(x, t) predicts epsilon."""
    s = DPMPP3MSDE(algorithm_type="sde-dpmsolver++", solver_order=3, use_karras_sigmas=True)
    s.set_timesteps(steps)
    s.set_begin_index(0)
    start, draws = torch.Generator().manual_seed(1), [torch.Generator().manual_seed(2) for _ in range(2)]
    x = torch.randn(1, 4, 2, 2, generator=start)
    alphas = [s._sigma_to_alpha_sigma_t(v)[0] for v in s.sigmas]

    def denoise(x_ve, i):
        return x_ve - s.sigmas[i] * model(alphas[i] * x_ve, s.timesteps[i])

    want = k_diffusion(denoise, x / alphas[0], s.sigmas,
                       lambda: torch.randn(1, 4, 2, 2, generator=draws[0]))
    for t in s.timesteps:
        x = s.step(model(x, t), t, x, generator=draws[1]).prev_sample
    error = float((x - want).norm() / want.norm())
    assert error < 1e-5, error
