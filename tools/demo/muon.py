"""Muon: momentum whose matrices are made orthogonal before the step (Jordan 2024), Adam for all else.

On a small budget of steps it is worth several times Adam: every direction of a weight matrix moves alike, instead
of the few that dominate the gradient.
"""
import torch


@torch.no_grad()
def orthogonal(g, steps=5):
    """Newton-Schulz iteration of degree five towards the nearest semi-orthogonal matrix, in bf16."""
    x = g.bfloat16()
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    x = x / (x.float().norm().bfloat16() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Groups with muon=True hold weights of two or more dimensions, seen as out x (in * kernel)."""

    def __init__(self, model_parameters, lr=0.02, adam_lr=1e-3, momentum=.95, weight_decay=0.0, adam=()):
        adam = {id(p) for p in adam}
        ps = [p for p in model_parameters if p.requires_grad]
        matrices = [p for p in ps if p.dim() >= 2 and min(p.size(0), p[0].numel()) >= 8 and id(p) not in adam]
        chosen = {id(p) for p in matrices}
        super().__init__([
            dict(params=matrices, muon=True, lr=lr, base=lr, momentum=momentum, weight_decay=weight_decay),
            dict(params=[p for p in ps if id(p) not in chosen], muon=False, lr=adam_lr, base=adam_lr, momentum=.9,
                 weight_decay=0.0)], {})

    def set_rate(self, share):
        """The learning rates as a share of those given."""
        for g in self.param_groups:
            g["lr"] = g["base"] * share

    def load_state_dict(self, state):
        """The momentum comes back; the rates stay those given now."""
        own = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        super().load_state_dict(state)
        for g, settings in zip(self.param_groups, own):
            g.update(settings)

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["m"] = torch.zeros_like(p)
                    if not g["muon"]:
                        s["v"], s["t"] = torch.zeros_like(p), 0
                s["m"].lerp_(p.grad, 1 - g["momentum"])
                if g["muon"]:
                    u = p.grad.lerp(s["m"], g["momentum"]).reshape(p.size(0), -1)
                    u = orthogonal(u).to(p.dtype)
                    p.mul_(1 - g["lr"] * g["weight_decay"])
                    p.add_(u.view(p.shape), alpha=-g["lr"] * max(1, p.size(0) / p[0].numel()) ** .5)
                else:
                    s["t"] += 1
                    s["v"].lerp_(p.grad * p.grad, .01)
                    m, v = s["m"] / (1 - .9 ** s["t"]), s["v"] / (1 - .99 ** s["t"])
                    p.addcdiv_(m, v.sqrt_().add_(1e-8), value=-g["lr"])
