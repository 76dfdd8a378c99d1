"""The exact reference: probabilities of bytes, summed over all tokenizations by a beam."""
