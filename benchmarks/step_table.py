"""The tables that `train_step.py` prints."""

from typing import Any

Result = dict[str, Any]


def to_text(result: Result) -> str:
  """The tables."""
  r = result
  lines = [
    f"{r['devices']} x {r['device']}, jax {r['jax']}: {r['params'] / 1e6:.1f}M parameters in "
    f"{r['param_dtype']}, activations in {r['dtype']}",
    f"{r['rows']} x {r['seq_len']} bytes, {r['num_patches']} patch slots a row, "
    f"{r['documents_per_row']:.1f} documents a row",
    f"FLOPs per byte, forward + backward: {r['flops'] / _bytes(r) / 1e6:.1f}M; the paper "
    f"charges {r['paper_flops'] / _bytes(r) / 1e6:.1f}M",
    f"One large product: {r['ceiling']['flops_per_s'] / 1e12:.3g} TFLOP/s; a copy: "
    f"{r['ceiling']['copied_bytes_per_s'] / 1e9:.3g} GB/s",
    "",
    *_passes_text(r),
  ]
  if "parts" in r:
    lines += ["", *_parts_text(r)]
  if "in_turn" in r:
    lines += ["", *_peers_text(r)]
  return "\n".join(lines)


def _bytes(r: Result) -> int:
  return r["rows"] * r["seq_len"]


def limits(r: Result) -> dict[str, float]:
  """The least seconds that arithmetic leaves each pass; see the top of this file."""
  both = r["flops"] / (r["devices"] * r["ceiling"]["flops_per_s"])
  moved = 2 * r["state_bytes"] / (r["devices"] * r["ceiling"]["copied_bytes_per_s"])
  least = {"forward": both / 3, "forward_backward": both, "step": both + moved}
  return {name: least[name] for name in least if name in r["seconds"]}


def _passes_text(r: Result) -> list[str]:
  head = "                          ms   bytes/s  limit    MFU  peak GB  temp GB  compile s"
  lines = [head]
  for name, limit in limits(r).items():
    seconds, compiled = r["seconds"][name], r["compiled"][name]
    flops = r["flops"] / (3 if name == "forward" else 1)
    peak = r["chip_flops"] and flops / seconds / (r["devices"] * r["chip_flops"])
    mfu = f"{peak:6.1%}" if peak else "     -"
    lines.append(
      f"{name.replace('_', ' + '):18s}{1e3 * seconds:10.2f}{_bytes(r) / seconds:10.0f}"
      f"{limit / seconds:7.1%} {mfu}{compiled['peak_bytes'] / 1e9:9.2f}"
      f"{compiled['temporary_bytes'] / 1e9:9.2f}{compiled['compile_s']:11.1f}"
    )
  best = ", ".join(f"{n.replace('_', ' + ')} {_bytes(r) / s:.0f}" for n, s in limits(r).items())
  return [*lines, f"limit, bytes/s: {best}"]


def _parts_text(r: Result) -> list[str]:
  lines = ["part                                     times  forward ms  with backward  of step"]
  step = r["seconds"]["step"]

  def line(part, name, count, forward, both):
    first = f"{1e3 * forward:12.2f}" if forward is not None else " " * 12
    return f"{part:17s}{name:24s}{count:5s}{first}{1e3 * both:15.2f}{both / step:9.1%}"

  left = {"forward_s": r["seconds"]["forward"], "forward_backward_s": step}
  left["forward_backward_s"] -= r["seconds"]["optimizer"]
  for piece in r["parts"]:
    forward, both = piece["forward_s"], piece["forward_backward_s"]
    lines.append(line(piece["part"], piece["name"], str(piece["count"]), forward, both))
    left["forward_s"] -= forward
    left["forward_backward_s"] -= both
  for part in dict.fromkeys(piece["part"] for piece in r["parts"]):
    sums = [
      sum(p[key] for p in r["parts"] if p["part"] == part)
      for key in ("forward_s", "forward_backward_s")
    ]
    lines.append(line(part, "together", "", *sums))
  lines.append(line("optimizer", "", "", None, r["seconds"]["optimizer"]))
  lines.append(line("rest", "", "", left["forward_s"], left["forward_backward_s"]))
  return lines


def _peers_text(r: Result) -> list[str]:
  lines = ["in turn, bytes/s                               forward  forward + backward"]
  for peer in r["in_turn"]["forward"]:
    rates = [_bytes(r) / r["in_turn"][name][peer] for name in ("forward", "forward_backward")]
    lines.append(f"{peer:42s}{rates[0]:12.0f}{rates[1]:20.0f}")
  return lines
