"""Sites: what a round costs beside stock Flower, 50 sites on one machine, and injected faults (Linux).

    python bench/sites.py overhead                      # methods of ours and Flower's FedAvg: a table
    python bench/sites.py many --sites 50               # 50 sites, 5 of them in each round, to the serial run's weights
    python bench/sites.py faults --num 200 --seed 0     # faults of 8 kinds: nothing accepted, nothing lost

Needs the extras ``experiments`` and ``federated``; ``many`` and ``faults`` need ``openssl`` and ``ssh-keygen``, too.
The parts are in bench/federated.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).parent / "federated"))

import torch

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main() -> None:
    """Run one of the benches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the files of the runs; default: one that is removed")
    commands = parser.add_subparsers(dest="command", required=True)
    _overhead(commands)
    _many(commands)
    _faults(commands)
    o = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        problems = o.run(o, (o.folder or Path(temporary)).resolve())
    sys.exit(bool(problems))


def _overhead(commands: Commands) -> None:
    import overhead

    parser = commands.add_parser("overhead", description=overhead.HELP)
    names = [*overhead.METHODS, *overhead.RIVALS]
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="local steps of a round")
    parser.add_argument("--hidden", type=int, default=2048, help="units of each of the two hidden layers")
    parser.add_argument("--methods", default=";".join(names), help="separated by ';'")

    def run(o: argparse.Namespace, folder: Path) -> list[str]:
        given = {"workers": o.sites, "rounds": o.rounds, "local_steps": o.steps, "model.hidden": o.hidden}
        return overhead.main(folder, o.methods.split(";"), given, o.sites)

    parser.set_defaults(run=run)


def _many(commands: Commands) -> None:
    import many

    parser = commands.add_parser("many", description=many.HELP)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--workers", type=int, default=5, help="sites that train in each round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=320)
    parser.set_defaults(run=lambda o, folder: many.main(folder, o.sites, o.workers, o.rounds, o.hidden))


def _faults(commands: Commands) -> None:
    import faults

    parser = commands.add_parser("faults", description=faults.HELP)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--method", default="ist")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds of a round")
    parser.add_argument("--kinds", default=",".join(faults.WAYS))

    def run(o: argparse.Namespace, folder: Path) -> list[str]:
        return faults.main(folder, o.num, o.seed, o.sites, o.method, o.deadline, o.kinds.split(","))

    parser.set_defaults(run=run)


if __name__ == "__main__":
    main()
