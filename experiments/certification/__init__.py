"""How tight certificates are: every method's bound beside the measured error of the logits.

python -m experiments.certification mlp resnet transformer speed --pictures DIRECTORY
"""
