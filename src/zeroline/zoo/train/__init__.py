"""Makes the zoo's weights again, from seeds: ``python -m zeroline.zoo.train vit|clip``. One file per model; ``common`` is what they share."""
