"""Measure time and memory of the clustering and of a training step, relative to a plain implementation.

The plain implementation is `lib.slic.reference`, measured in the same program. Each workload runs in a fresh
process, so that its peak memory can be measured. Needs Linux.

    python -m benchmarks.benchmark_base_model
"""

import argparse

import torch

from benchmarks.measuring import MIB, Cost, describe, in_process, measure
from lib.losses import compute_loss_terms
from lib.network.inputs import InputScales, input_channels, model_input, pixel_positions
from lib.slic import reference
from lib.slic.iteration import slic
from model import SSNModel

SCALES = InputScales()
COMPACTNESS = 1e-5


def clustering_cost(
    device: torch.device, implementation: str, size: tuple[int, int], n_spixels: int, n_repeats: int
) -> Cost:
    """Measure five iterations on 18 random channels and two position channels."""
    torch.manual_seed(0)
    features = torch.randn(1, 20, *size, device=device)
    features[:, -2:] = input_channels(features[:, :3], None, n_spixels, SCALES)[:, -2:]

    cluster = {"ours": slic, "gather": reference.gather_slic}[implementation]
    with torch.inference_mode():
        return measure(lambda: cluster(features, n_spixels), device, n_repeats)


def training_cost(device: torch.device, implementation: str, n_spixels: int, n_repeats: int) -> Cost:
    """Measure forward, loss and backward on 6 crops of 200x200 with 10 segments each."""
    torch.manual_seed(0)
    image_lab = 50 + 20 * torch.randn(6, 3, 200, 200, device=device)
    segments = pixel_positions(image_lab).to(torch.int64)  # (6, 2, 200, 200)
    gt_labels = segments[:, 0] // 100 * 5 + segments[:, 1] // 40
    memory_format = torch.contiguous_format if implementation == "gather" else torch.channels_last
    model = SSNModel().to(device, memory_format=memory_format)

    def ours() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=implementation == "ours bf16"):
            output = model(model_input(model, image_lab, n_spixels, SCALES), n_spixels)
        terms = compute_loss_terms(
            output.assignment,
            output.labels,
            gt_labels[:, None],
            10,
            reconstruction="cross_entropy",
            compactness=COMPACTNESS,
        )
        sum(terms.values()).backward()

    def gather() -> None:
        labyx = input_channels(image_lab, None, n_spixels, SCALES)
        features = model.pixel_features(labyx)
        affinity, candidates, n_cells = reference.gather_slic(features, n_spixels)
        labels = reference.labels_of(affinity, candidates)
        dense = reference.dense_affinity(affinity, candidates, n_cells)
        onehot = torch.nn.functional.one_hot(gt_labels, 10).permute(0, 3, 1, 2).float()
        loss = reference.cross_entropy(reference.reconstruct(dense, onehot), gt_labels)
        loss = loss + COMPACTNESS * reference.position_loss(dense, labels)
        loss.backward()

    return measure(gather if implementation == "gather" else ours, device, n_repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    device = torch.device(parser.parse_args().device)
    print(f"torch {torch.__version__} on {describe(device)}")

    for n_spixels in (200, 1000):
        ours = in_process(clustering_cost, device, "ours", (480, 854), n_spixels, 15)
        gather = in_process(clustering_cost, device, "gather", (480, 854), n_spixels, 3)
        print(
            f"clustering 480x854, {n_spixels} superpixels: {ours.seconds:.3f} s against "
            f"{gather.seconds:.2f} s, {gather.seconds / ours.seconds:.1f} times faster; memory "
            f"{ours.extra_bytes / MIB:.0f} MiB against {gather.extra_bytes / MIB:.0f} MiB, a share of "
            f"{ours.extra_bytes / gather.extra_bytes:.3f}"
        )
    large = in_process(clustering_cost, device, "ours", (2160, 3840), 5000, 3)
    print(
        f"clustering 3840x2160, 5000 superpixels: {large.seconds:.2f} s, "
        f"{large.extra_bytes / MIB:.0f} MiB above its input"
    )

    gather = in_process(training_cost, device, "gather", 200, 2)
    for implementation in ("ours fp32", "ours bf16"):
        ours = in_process(training_cost, device, implementation, 200, 7)
        many = in_process(training_cost, device, implementation, 1000, 7)
        print(
            f"training step {implementation}, 200 superpixels: {ours.seconds:.2f} s against "
            f"{gather.seconds:.2f} s, {gather.seconds / ours.seconds:.1f} times faster; peak memory "
            f"{ours.total_bytes / MIB:.0f} MiB against {gather.total_bytes / MIB:.0f} MiB; "
            f"1000 superpixels take {many.total_bytes / ours.total_bytes:.2f} times the memory"
        )


if __name__ == "__main__":
    main()
