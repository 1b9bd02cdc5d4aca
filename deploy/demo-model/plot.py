"""Draws loss.png from loss.csv. Run: python deploy/demo-model/plot.py"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def draw(folder: Path) -> None:
    with (folder / "loss.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    axes.plot(tokens, [float(row["train_loss"]) for row in rows], color="#8aa9c9", label="training (moving average)")
    checked = [(at, float(row["held_out_loss"])) for at, row in zip(tokens, rows, strict=True) if row["held_out_loss"]]
    axes.plot(*zip(*checked, strict=True), "o-", color="#b3402a", markersize=3, label="held-out documents")
    axes.set(xlabel="million tokens", ylabel="cross-entropy, nats per token", title="Demo model, training from scratch")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(HERE)
