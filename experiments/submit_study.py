"""A study in shards by submitit, on a SLURM cluster or on this machine.

    python experiments/submit_study.py --resources gpus_per_node=1 slurm_partition=gpu \
        --optimizers sgd adamw muon lion --network cifar10 --workdir runs/four

--cluster local takes processes of this machine. What is not in --help goes to optimizers.py. Needs
pip install 'jaxcnn[cluster]'.
"""

from pathlib import Path

from jaxcnn.cli.submission import main

if __name__ == "__main__":
    main(Path(__file__).with_name("optimizers.py"))
