"""What a model says on held-out conversations: scores, replies, and how far it is from a teacher."""
