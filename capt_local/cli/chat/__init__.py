"""`capt-local chat`: the conversation, its commands, what it writes down."""
