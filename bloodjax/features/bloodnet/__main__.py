"""Train BloodNet's weights again."""

from bloodjax.features.bloodnet.training import main

main()
