"""The CIFAR-10 network, trained on the real CIFAR-10 and scored on all 10,000 test images.

    python experiments/cifar10.py

85.4 % within five minutes of training on two CPU cores with AVX-512 (recipe fast, see the
README); --help lists the flags.
"""

from collections.abc import Sequence

import jaxcnn
from jaxcnn import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment with the arguments of the process, or others."""
    with cli.ending_on_errors("cifar10"):
        flags, recipe = cli.parse_flags("cifar10", argv)
        session = cli.open_session(flags, recipe)
        dataset = session.load_data()
        with session.interruptible() as interrupted:
            result = jaxcnn.fit(
                session.recipe,
                dataset,
                model=session.model,
                start=session.start,
                freeze=flags.freeze,
                loss=session.loss,
                log_every=flags.log_every,
                seed=flags.seed,
                feed=flags.feed,
                mesh=session.mesh,
                observers=session.observers,
                checkpoints=session.checkpoints,
                interrupted=interrupted,
            )
        session.finish(result, dataset)


if __name__ == "__main__":
    main()
