// Documents that the model that ships can answer questions about.
export const EXAMPLES = [
  {
    name: "A museum",
    text: "The museum opened in 1931 in Graz. Its founder, Clara Weiss, gave it four hundred clocks. Tickets cost six euros.",
    questions: ["When did the museum open?", "Who founded the museum?", "How much is a ticket?"],
  },
  {
    name: "A town",
    text: "Altmark lies on the river Saale. Altmark has a population of 9,908. Altmark is 400 metres from the coast. The mayor of Altmark is Oscar Brandt. Altmark is known for its bread. The market takes place on Saturday. The road was repaired in spring.\n\nThe Harbour Theatre opened on 17 July 1828. The Harbour Theatre is closed on Monday. A ticket for the Harbour Theatre costs 18 euros. Last year 11,516 people visited the Harbour Theatre.\n\nGreta Lindner was born in 1846. Greta Lindner spent many years teaching music. Greta Lindner died in 1913. The closest friend of Greta Lindner was Vera Holm.\n\nNordsee AG employs 436 people. Nordsee AG was founded by David Kern in 1889. Nordsee AG sells wine to shops in the whole country.",
    questions: ["Who is the mayor of Altmark?", "What is Altmark known for?", "When is the Harbour Theatre closed?", "What does Nordsee AG sell?"],
  },
  {
    name: "A telescope",
    text: "The Lumen telescope comes in grey. Every Lumen telescope is built in Bergen. The price of the Lumen telescope is 480 dollars. The battery of the Lumen telescope lasts 36 hours. The warranty of the Lumen telescope lasts five years. The weight of the Lumen telescope is 12 pounds.\n\nLumen accepts returns within 30 days. Calls to Lumen are answered until 17:30. Lumen is maintained by Anna Becker. The workshop stands on a hill above the harbour. Most people agree about this.",
    questions: ["Where is the Lumen telescope made?", "How long is the warranty of the Lumen telescope?", "Within how many days does Lumen accept returns?"],
  },
  {
    name: "A service",
    text: "The Relay service listens on port 4857. Relay gives up after 205 seconds. Relay is maintained by Yusuf Aydin. The support desk of Relay closes at 18:00. Nobody had expected so many letters.\n\nThe Archive service listens on port 9100. Archive gives up after 39 seconds. Archive is maintained by Teresa Molina. Archive accepts returns within 14 days. The old records were lost in a fire.\n\nThe Index service listens on port 7070. Index is maintained by Chen Lin.",
    questions: ["On which port does Relay listen?", "Who maintains Archive?", "After how long does Archive give up?"],
  },
];
