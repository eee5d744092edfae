"""ranks.safetensors and ranks.json: the configurations that simulate_ranks.py is run with."""
import common
from simulate_ranks import Ranks, denoise, make_scheduler, open_model, run

MODEL = "pipeline_sd1/unet"
STEPS, GUIDANCE = 5, 4.0
SIZES = {"32x12": (32, 12), "37x10": (37, 10)}
TRACED = {("32x12", 4, "pcpp", 0.3, "corrected", 0), ("37x10", 4, "pcpp", 0.3, "corrected", 0)}


def cases():
    modes = ("sync", "stale", "corrected", "local")
    for n in (2, 4):
        for partial in (0.0, 0.3, 1.0, "all"):
            for mode in modes:
                for warmup in (0, 1):
                    yield "32x12", n, "distrifusion" if partial == "all" else "pcpp", partial, mode, warmup
    for mode in modes:
        yield "32x12", 3, "pcpp", 0.3, mode, 0
    for partial in (0.0, 1.0, 2.5):
        yield "32x12", 3, "pcpp", partial, "corrected", 0
    yield "32x12", 3, "distrifusion", "all", "stale", 1
    for n in (2, 4, 5):
        yield "37x10", n, "pcpp", 0.3, "corrected", 0
        yield "37x10", n, "pcpp", 1.0, "stale", 1
    for size in SIZES:
        for n in (2, 3, 4):
            yield size, n, "naive", 0.0, "local", 0
    for size in SIZES:
        for n in (2, 3, 4):
            yield size, n, "sync", 0.3, "corrected", 0
    for size in SIZES:
        yield size, 3, "sync", 0.3, "corrected", 0, {"rescale": 0.7}
        yield size, 3, "naive", 0.0, "local", 0, {"rescale": 0.7}
        yield size, 4, "pcpp", 0.3, "corrected", 1, {"rescale": 1.0}
        yield size, 3, "sync", 0.3, "corrected", 0, {"interval": [0.2, 0.7]}
        yield size, 3, "pcpp", 0.3, "corrected", 1, {"rescale": 0.7, "interval": [0.41, 1.0]}


def check_steady_state(unet, noise, ehs):
    """The same evaluation twice: what is stale is then what would be fresh, so the second equals one device."""
    x = noise.repeat(2, 1, 1, 1)
    whole = unet(x, 501, ehs).sample
    for n in (2, 3, 4):
        for mode in ("sync", "stale", "corrected"):
            ranks = Ranks(unet, *noise.shape[2:], {"ranks": n, "mode": "pcpp", "partial": "all", "group_norm": mode})
            first, second = ranks.evaluate(x, 501, ehs, True), ranks.evaluate(x, 501, ehs, False)
            ranks.close()
            error = max(common.rel_l2(first, whole), common.rel_l2(second, whole))
            assert error < 1e-5, (n, mode, error)


def main():
    unet = open_model(common.folder(MODEL))
    scheduler = make_scheduler()
    ehs = common.randn((2, 77, 32), 900)
    tensors, listed, single = {"encoder_hidden_states": ehs}, [], {}
    for size, (h, w) in SIZES.items():
        noise = common.randn((1, 4, h, w), 901)
        trace = denoise(lambda x, t, e, i: unet(x, t, e).sample, scheduler, noise, ehs, STEPS, GUIDANCE)
        check_steady_state(unet, noise, ehs)
        single[size] = trace[-1]
        tensors.update({f"noise_{size}": noise, f"single_{size}": trace[-1]})
    for key in cases():
        size, n, mode, partial, group_norm, warmup, *more = key
        more = more[0] if more else {}
        case = {"name": "_".join([size, f"n{n}", mode, f"p{partial}", group_norm, f"w{warmup}", *more]), "size": size,
                "ranks": n, "mode": mode, "partial": partial, "group_norm": group_norm, "warmup": warmup,
                "steps": STEPS, "guidance": GUIDANCE, **more}
        trace, ranks = run(unet, scheduler, tensors[f"noise_{size}"], ehs, case)
        case["deepest_rows"] = ranks.plan.deepest
        case["raised_variances"] = sum(ranks.raised)
        alone = single[size]
        if more:
            alone = denoise(lambda x, t, e, i: unet(x, t, e).sample, scheduler, tensors[f"noise_{size}"], ehs, STEPS,
                            GUIDANCE, **more)[-1]
            assert common.rel_l2(alone, single[size]) > 0.01
        case["distance_to_single"] = common.rel_l2(trace[-1], alone)
        if mode == "sync":
            assert case["distance_to_single"] < 1e-5, case
        if mode != "sync" or more:
            tensors[case["name"]] = alone if mode == "sync" else trace[-1]
        if not more and key in TRACED:
            case["trace"] = True
            for i, latents in enumerate(trace):
                tensors[f"{case['name']}.step{i}"] = latents
        listed.append(case)
        print(case["name"], case["deepest_rows"], f"{case['distance_to_single']:.2e}", case["raised_variances"])
    common.save_tensors(common.folder() / "ranks.safetensors", tensors)
    common.save_json(common.folder() / "ranks.json", {"model": MODEL, "scheduler": dict(scheduler.config),
                                                      "cases": listed})


if __name__ == "__main__":
    common.check_versions()
    main()
